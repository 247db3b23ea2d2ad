# The proxy as one small image: no compiler, no root, nothing to write but the queue's volume.
# Python's version and Debian's are fixed here; the workflow that publishes the image puts the digest
# of the moment in the tag's place and records it, so that an image can be built again.
FROM python:3.12-slim-bookworm AS build
RUN python -m venv /opt/open-llm-proxy
# Wheels only, each with the hash that the lock names; `make lock` renews it.
COPY requirements.lock /src/
RUN /opt/open-llm-proxy/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: \
        --requirement /src/requirements.lock
COPY setup.py pyproject.toml LICENSE /src/
COPY server /src/server
COPY queue /src/queue
COPY archive /src/archive
COPY tools/agent /src/tools/agent
# Built with the setuptools of the lock; then neither it nor pip has anything to do here.
RUN /opt/open-llm-proxy/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src \
    && /opt/open-llm-proxy/bin/pip uninstall --yes setuptools pip

FROM python:3.12-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="open-llm-proxy" \
      org.opencontainers.image.description="OpenAI-compatible LLM proxy that never loses a log line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Fixed numbers, so that a volume's files keep their owner and Kubernetes can verify "not root".
# Debian has a group and a user named proxy already.
RUN groupadd --gid 10001 llmproxy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin llmproxy \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/open-llm-proxy

COPY --from=build /opt/open-llm-proxy /opt/open-llm-proxy
COPY config.json /etc/open-llm-proxy/config.json

# Unbuffered, because the log lines on stdout are read as they come.
ENV PATH=/opt/open-llm-proxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8002 \
    CONFIG=/etc/open-llm-proxy/config.json \
    LOG_QUEUE_DIR=/var/lib/open-llm-proxy

# Where the demo puts its objects; the root file system may be read-only.
WORKDIR /tmp
VOLUME /var/lib/open-llm-proxy
EXPOSE 8002
USER 10001:10001

HEALTHCHECK --interval=10s --timeout=5s --start-period=5s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=4)"]

# Exec form: the server itself is process 1 and gets SIGTERM, which starts its orderly shutdown.
CMD ["open-llm-proxy", "serve"]
