"""All settings of the program, read from environment variables into one frozen, typed object.

A setting is a field with its variable's name and a line of help; ``--help``, the README's table
and the parser are all made from these fields. A wrong value is refused at start with a sentence
that names the variable and says what is expected. Values of secret settings are never shown.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, cast, get_args

from open_llm_proxy.queue.batches import check_window

MIB = 1024 * 1024
DEFAULT_KEY_NAME = "default"
# Names of earlier programs that are read as well, where the setting's own name is not set.
OTHER_NAMES = {
    "AWS_ENDPOINT_URL_S3": "AWS_S3_ENDPOINT_URL",
    "LOG_CAPTURE": "LOG_CAPTURE_MODE",
    "FLUSH_INTERVAL_SECONDS": "FLUSH_INTERVAL",
}
KEY_HASH_DIGITS = 6
Network = IPv4Network | IPv6Network
CaptureMode = Literal["metadata", "summary", "full"]


class SettingsError(Exception):
    """Settings cannot be used; each of `mistakes` is a sentence that names the variable."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _setting(
    variable: str,
    default: Any,
    text: str,
    read: Callable[[str], Any] = str,
    *,
    secret: bool = False,
) -> Any:
    metadata = {"variable": variable, "text": text, "read": read}
    return field(default=default, repr=not secret, metadata=metadata)


def _number(
    kind: type[int] | type[float], minimum: float, unit: str, example: str
) -> Callable[[str], Any]:
    """A reader of numbers; what it raises completes the sentence ``PORT=x: must be …``."""
    noun = "a whole number" if kind is int else "a number"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"must be {noun}{unit}, such as {example}") from None
        if not minimum <= value < float("inf"):
            raise ValueError(f"must be {noun}{unit}, at least {minimum}")
        return value

    return read


def _port(text: str) -> int:
    value: int = _number(int, 0, "", "8002")(text)
    if value > 65535:
        raise ValueError("must be a port number from 0 to 65535")
    return value


def _window(text: str) -> int:
    value: int = _number(int, 1, " of seconds", "300")(text)
    try:
        return check_window(value)
    except ValueError:
        raise ValueError("must divide 86,400 (a day), such as 60, 300 or 3600") from None


def _first_file(text: str) -> Path:
    """The first of the colon-separated paths that is a file, else the last."""
    paths = [Path(part) for part in text.split(":") if part]
    if not paths:
        raise ValueError("must be the path of a file, such as config.json")
    return next((path for path in paths if path.is_file()), paths[-1])


def _capture(text: str) -> CaptureMode:
    for mode in get_args(CaptureMode):
        if mode == text.lower():
            return cast(CaptureMode, mode)
    raise ValueError(f"must be one of {', '.join(get_args(CaptureMode))}")


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError("must be on or off")
    return text.lower() == "on"


def _origins(text: str) -> tuple[str, ...]:
    return tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part)
    except ValueError:
        raise ValueError("must be addresses or networks, such as 10.0.0.0/8,fd00::/8") from None


def _named_keys(text: str) -> tuple[tuple[str, str], ...]:
    keys: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, key = (part.strip() for part in pair.partition(":"))
        if not separator:
            name, key = key_hash_name(pair), pair
        if not name or not key:
            raise ValueError("must have the form name:key,name:key")
        if keys.get(name, key) != key or (separator and name in keys):
            raise ValueError(f"must not use the name {name!r} twice")
        if name == DEFAULT_KEY_NAME:
            raise ValueError(f"must not use the name {name!r}, which is the name of PROXY_KEY")
        keys[name] = key
    return tuple(keys.items())


def key_hash_name(key: str) -> str:
    """The name in the log of a key that was given none; tells nothing of the key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:KEY_HASH_DIGITS]


_count = _number(int, 0, "", "4000")
_size = _number(int, 1, " of bytes", "67108864")
_seconds = _number(float, 0, " of seconds", "10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = _setting("HOST", "0.0.0.0", "Address to listen on")
    port: int = _setting("PORT", 8002, "Port to listen on; 0 = any free port", _port)
    metrics_port: int = _setting(
        "METRICS_PORT", 0, "Port for /metrics without a key; 0 = none", _port
    )
    config: Path = _setting(
        "CONFIG",
        Path("config.json"),
        "Path of config.json (providers and models); of several, separated by colons, the first "
        "that exists",
        _first_file,
    )
    proxy_key: str = _setting(
        "PROXY_KEY", "", "Key that clients must send as bearer token", secret=True
    )
    proxy_keys_extra: tuple[tuple[str, str], ...] = _setting(
        "PROXY_KEYS_EXTRA",
        (),
        "Additional keys as name:key,name:key; the log contains the name (of a key without a name, "
        "six hex digits of its hash)",
        _named_keys,
        secret=True,
    )
    proxy_key_file: Path | None = _setting(
        "PROXY_KEY_FILE", None, "File with the key, instead of PROXY_KEY; read again", Path
    )
    proxy_keys_dir: Path | None = _setting(
        "PROXY_KEYS_DIR", None, "Directory of more keys, in files named after them", Path
    )
    proxy_keys_json: Path | None = _setting(
        "PROXY_KEYS_JSON",
        None,
        "File of more keys by name, with models, expiry and requests per minute; read again",
        Path,
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "TRUSTED_PROXIES",
        (),
        "Addresses or networks whose X-Forwarded-For is believed, comma-separated",
        _networks,
    )
    cors_allow_origins: tuple[str, ...] = _setting(
        "CORS_ALLOW_ORIGINS", ("*",), "Allowed browser origins, comma-separated; * = all", _origins
    )
    max_body_bytes: int = _setting(
        "MAX_BODY_BYTES", 64 * MIB, "Maximum size of a request body; larger ones get 413", _size
    )
    max_bodies_bytes: int = _setting(
        "MAX_BODIES_BYTES",
        256 * MIB,
        "Maximum size of all request bodies of the calls in progress; beyond it 503",
        _size,
    )
    max_connections: int = _setting(
        "MAX_CONNECTIONS",
        10_000,
        "Maximum number of client connections; beyond it idle ones and strangers' are closed",
        _number(int, 1, "", "10000"),
    )
    upstream_connect_timeout_seconds: float = _setting(
        "UPSTREAM_CONNECT_TIMEOUT_SECONDS", 10.0, "Time limit to connect to a provider", _seconds
    )
    upstream_idle_timeout_seconds: float = _setting(
        "UPSTREAM_IDLE_TIMEOUT_SECONDS",
        300.0,
        "Abort if the provider sends nothing for this long during an answer; 0 = no limit",
        _seconds,
    )
    upstream_timeout_seconds: float = _setting(
        "UPSTREAM_TIMEOUT_SECONDS", 1200.0, "Time limit of a whole call; 0 = no limit", _seconds
    )
    shutdown_delay_seconds: float = _setting(
        "SHUTDOWN_DELAY_SECONDS",
        5.0,
        "After SIGTERM, accept calls for this long while load balancers remove the server",
        _seconds,
    )
    shutdown_grace_seconds: float = _setting(
        "SHUTDOWN_GRACE_SECONDS", 120.0, "Then wait this long for calls in progress", _seconds
    )
    log_bucket: str = _setting("LOG_BUCKET", "", "S3 bucket for log objects")
    log_prefix: str = _setting("LOG_PREFIX", "", "Prefix of every object key in the bucket")
    log_dir: Path | None = _setting(
        "LOG_DIR", None, "Directory for log objects, instead of a bucket", Path
    )
    log_queue_dir: Path = _setting(
        "LOG_QUEUE_DIR",
        Path("log-queue"),
        "Directory of the durable queue; must be on a local disk",
        Path,
    )
    log_queue_max_bytes: int = _setting(
        "LOG_QUEUE_MAX_BYTES",
        4096 * MIB,
        "Maximum size of the queue; when it is reached, new calls get 503",
        _size,
    )
    log_object_max_bytes: int = _setting(
        "LOG_OBJECT_MAX_BYTES", 16 * MIB, "Maximum size of a log object", _size
    )
    log_transcript_max_bytes: int = _setting(
        "LOG_TRANSCRIPT_MAX_BYTES", 4 * MIB, "Maximum bytes of one answer to log", _size
    )
    log_capture: CaptureMode = _setting(
        "LOG_CAPTURE", "summary", "What to log of each call: metadata, summary or full", _capture
    )
    log_content_max: int = _setting(
        "LOG_CONTENT_MAX", 0, "Maximum characters of an answer's text to log; 0 = all", _count
    )
    log_reasoning_max: int = _setting(
        "LOG_REASONING_MAX", 0, "Maximum characters of its reasoning to log; 0 = all", _count
    )
    log_tool_result_max: int = _setting(
        "LOG_TOOL_RESULT_MAX",
        20_000,
        "Maximum characters of each tool result to log; 0 = all",
        _count,
    )
    log_user_question_max: int = _setting(
        "LOG_USER_QUESTION_MAX",
        4_000,
        "Maximum characters of each user message to log; 0 = all",
        _count,
    )
    flush_interval_seconds: int = _setting(
        "FLUSH_INTERVAL_SECONDS", 300, "Upload interval; must divide 86,400", _window
    )
    s3_endpoint_url: str = _setting(
        "AWS_ENDPOINT_URL_S3", "", "URL of the S3 endpoint (AWS_S3_ENDPOINT_URL works too)"
    )
    s3_region: str = _setting("AWS_REGION", "", "S3 region, if the store needs one")
    online_checks: bool = _setting(
        "ONLINE_CHECKS",
        True,
        "After the start, test store and providers in the background: on or off",
        _switch,
    )
    termination_log: Path = _setting(
        "TERMINATION_LOG",
        Path("/dev/termination-log"),
        "File that receives the reason of a failed start, if it exists",
        Path,
    )
    pod_name: str = _setting(
        "POD_NAME", "", "Name of this instance in the log; default is the host name"
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read and check all settings; raises `SettingsError` with every mistake."""
        settings, mistakes = cls.read(environment)
        if mistakes:
            raise SettingsError(*mistakes)
        return settings

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> tuple["Settings", list[str]]:
        """The settings and a sentence for each mistake; a wrong or empty value is the default."""
        values: dict[str, Any] = {}
        mistakes: list[str] = []
        for item in fields(cls):
            variable: str = item.metadata["variable"]
            text = environment.get(variable, "").strip()
            if not text and (other := OTHER_NAMES.get(variable)) is not None:
                variable, text = other, environment.get(other, "").strip()
            if text:
                try:
                    values[item.name] = item.metadata["read"](text)
                except ValueError as error:
                    shown = text if text.isprintable() else repr(text)
                    mistakes.append(f"{variable}{f'={shown}' if item.repr else ''}: {error}")
        settings = cls(**values)
        return settings, mistakes + settings._contradictions()

    def _contradictions(self) -> list[str]:
        found = []
        if self.proxy_key and self.proxy_key_file is not None:
            found.append("Set PROXY_KEY or PROXY_KEY_FILE, not both")
        if self.log_bucket and self.log_dir is not None:
            found.append("Set LOG_BUCKET or LOG_DIR, not both")
        if self.log_bucket.startswith("s3://") or "/" in self.log_bucket:
            found.append(
                f"LOG_BUCKET={self.log_bucket}: must be the bare name of a bucket; "
                "put a path into LOG_PREFIX"
            )
        return found


def settings_help() -> str:
    """All variables with meaning and default, one a line, for ``--help``."""
    wide = max(len(variable) for variable, _, _ in _described())
    return "\n".join(
        f"  {variable:{wide}}  {text}" + (f" (default {default})" if default else "")
        for variable, text, default in _described()
    )


def settings_table() -> str:
    """The same as a Markdown table, for the README."""
    rows = [
        f"| `{variable}` | {f'`{default}`' if default else ''} | {text} |"
        for variable, text, default in _described()
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def _described() -> list[tuple[str, str, str]]:
    return [
        (item.metadata["variable"], item.metadata["text"], _shown(item.default))
        for item in fields(Settings)
    ]


def variable_names() -> list[str]:
    """The variables of all settings."""
    return [item.metadata["variable"] for item in fields(Settings)]


def _shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, int) and default >= MIB and default % MIB == 0:
        return f"{default} = {default // MIB} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def from_process_environment() -> Settings:
    """The settings of this process; raises `SettingsError` with every mistake."""
    return Settings.from_environment(os.environ)
