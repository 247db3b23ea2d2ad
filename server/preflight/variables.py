"""Environment variables that nobody reads: misspelt ones would be ignored in silence."""

import re
from collections.abc import Collection, Iterator, Mapping

from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.settings import OTHER_NAMES, variable_names

AREA = "settings"
OUR_PREFIXES = ("LOG_", "UPSTREAM_", "PROXY_", "SHUTDOWN_", "FLUSH_", "METRICS_", "CORS_")
READ_BY_OTHERS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
)
# Settings of the proxy that this design comes from, and why there is nothing in their place.
WITHOUT_COUNTERPART = {
    "LOG_MAX_BUFFER": "no entry is dropped; LOG_QUEUE_MAX_BYTES limits the queue on disk",
    "LOG_STDOUT_MAX_FIELD": "stdout has whole lines; LOG_CAPTURE and LOG_*_MAX shorten all entries",
    "LOG_RATIO_MIN_REQUESTS": "every request entry gets its response entry",
    "LOG_RATIO_FLOOR": "every request entry gets its response entry",
    "SLOW_COMPLETION_WARN_SECONDS": "the log has latency_ms, and /metrics a histogram of it",
    "MODELS_CACHE_TTL": "lists of models are kept for five minutes",
}
CACHE_SALT = "CACHE_SALT"
OF_A_WEB_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# Kubernetes sets these for every service of a namespace.
OF_A_SERVICE = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")
# Shorter names are two letters away from too many others.
SHORTEST_NAME = 8
FARTHEST_EDITS = 2


def unread_variables(environment: Mapping[str, str], providers: Collection[str]) -> list[Finding]:
    """Findings for variables that look like settings; `providers` are those that config.json names.

    One that is near to a known name, while that one is not set, is a problem.
    """
    known = {*variable_names(), *READ_BY_OTHERS, *providers}
    found = [*_of_web_proxies(environment), *_of_before(environment)]
    if providers and CACHE_SALT not in providers and environment.get(CACHE_SALT):
        text = (
            f"{CACHE_SALT} is ignored, because config.json names it nowhere; add "
            f'"extra_body_env": {{"cache_salt": "{CACHE_SALT}"}} to the provider that takes it'
        )
        found.append(Finding(AREA, Level.PROBLEM, text))
    return [*found, *_found(environment, known)]


def _of_web_proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(environment):
        if name.upper() in OF_A_WEB_PROXY and environment[name]:
            # botocore reads them; of ALL_PROXY it knows nothing.
            uses = "" if name.upper() == "ALL_PROXY" else "; only uploads to S3 use it"
            text = f"{name} is ignored for calls: they go to providers directly{uses}"
            yield Finding(AREA, Level.WARNING, text)


def _of_before(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that another program called otherwise; they are read, or have no counterpart."""
    for new, old in OTHER_NAMES.items():
        if not environment.get(old, "").strip() or old in READ_BY_OTHERS:
            continue
        text = f"{old} is read as {new}; rename it"
        if environment.get(new, "").strip():
            text = f"{old} is ignored, because {new} is set; remove it"
        yield Finding(AREA, Level.WARNING, text)
    for name, instead in WITHOUT_COUNTERPART.items():
        if name in environment:
            text = f"{name} is ignored: {instead}; remove it"
            yield Finding(AREA, Level.WARNING, text)


def _found(environment: Mapping[str, str], known: Collection[str]) -> Iterator[Finding]:
    for name in sorted(environment):
        is_ours = name.startswith(OUR_PREFIXES)
        of_before = name in OTHER_NAMES.values() or name in WITHOUT_COUNTERPART
        if name in known or of_before or OF_A_SERVICE.fullmatch(name):
            continue
        near = [other for other in known if other not in environment and _is_near(name, other)]
        if near:
            meant = min(near, key=lambda other: (edits(name, other), other))
            yield Finding(AREA, Level.PROBLEM, f"{name} is ignored; did you mean {meant}?")
        elif is_ours:
            text = f"{name} is not a setting of this program and is ignored"
            yield Finding(AREA, Level.WARNING, text)


def _is_near(name: str, known: str) -> bool:
    if min(len(name), len(known)) < SHORTEST_NAME:
        return False
    if known.startswith(f"{name}_") or name.startswith(f"{known}_"):
        return True
    return edits(name, known) <= FARTHEST_EDITS


def edits(one: str, other: str) -> int:
    """How many letters must be inserted, removed or replaced (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]
