"""Environment variables that nobody reads: misspelt ones would be ignored in silence."""

import re
from collections.abc import Collection, Iterator, Mapping

from open_llm_proxy.server.preflight.findings import Finding, Level
from open_llm_proxy.server.settings import variable_names

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
    return [*_of_web_proxies(environment), *_found(environment, known)]


def _of_web_proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(environment):
        if name.upper() in OF_A_WEB_PROXY and environment[name]:
            # botocore reads them; of ALL_PROXY it knows nothing.
            uses = "" if name.upper() == "ALL_PROXY" else "; only uploads to S3 use it"
            text = f"{name} is ignored for calls: they go to providers directly{uses}"
            yield Finding(AREA, Level.WARNING, text)


def _found(environment: Mapping[str, str], known: Collection[str]) -> Iterator[Finding]:
    for name in sorted(environment):
        is_ours = name.startswith(OUR_PREFIXES)
        if name in known or OF_A_SERVICE.fullmatch(name):
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
