# The proxy as one small image: no compiler, no root, nothing to write but the queue's volume.
FROM python:3.12-slim

# A fixed number, so that a volume's files keep their owner and Kubernetes can verify "not root".
RUN groupadd --gid 10001 proxy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin proxy \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/open-llm-proxy

COPY setup.py pyproject.toml LICENSE /src/
COPY server /src/server
COPY queue /src/queue
COPY archive /src/archive
COPY tools/agent /src/tools/agent
RUN pip install --no-cache-dir /src && rm -rf /src

COPY config.json /etc/open-llm-proxy/config.json

# Unbuffered, because the log lines on stdout are read as they come.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8002 \
    CONFIG=/etc/open-llm-proxy/config.json \
    LOG_QUEUE_DIR=/var/lib/open-llm-proxy

VOLUME /var/lib/open-llm-proxy
EXPOSE 8002
USER 10001:10001

# Exec form: the server itself is process 1 and gets SIGTERM, which starts its orderly shutdown.
CMD ["open-llm-proxy", "serve"]
