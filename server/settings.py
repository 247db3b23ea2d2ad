"""Every setting of the program, from the environment, in one frozen, typed place.

A setting is a field with its variable's name and a sentence of help; `--help`, the README's
table and the parser all come from these fields. A value that cannot be right is refused at
start with a sentence that names the variable. Values of secret settings are never shown.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from open_llm_proxy.queue.batches import check_window

MIB = 1024 * 1024
CaptureMode = Literal["metadata", "summary", "full"]


class SettingsError(Exception):
    """An environment variable holds what it cannot mean; one sentence that names it."""


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


def _at_least(minimum: float, kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not value >= minimum:
            raise ValueError(f"must be at least {minimum}")
        return value

    return read


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be a port from 0 to 65535")
    return value


def _window(text: str) -> int:
    return check_window(int(text))


def _capture(text: str) -> CaptureMode:
    for mode in get_args(CaptureMode):
        if mode == text:
            return cast(CaptureMode, mode)
    raise ValueError(f"must be one of {', '.join(get_args(CaptureMode))}")


def _origins(text: str) -> tuple[str, ...]:
    return tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())


def _named_keys(text: str) -> tuple[tuple[str, str], ...]:
    keys: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, key = pair.partition(":")
        if not separator or not name.strip() or not key.strip():
            raise ValueError("must read name:key,name:key")
        if name.strip() in keys:
            raise ValueError(f"names {name.strip()!r} twice")
        keys[name.strip()] = key.strip()
    return tuple(keys.items())


_count = _at_least(0, int)
_size = _at_least(1, int)
_seconds = _at_least(0, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = _setting("HOST", "0.0.0.0", "address to listen on")
    port: int = _setting("PORT", 8002, "port to listen on; 0 takes a free one", _port)
    config: Path = _setting(
        "CONFIG", Path("config.json"), "file with the providers and models", Path
    )
    proxy_key: str = _setting("PROXY_KEY", "", "key that clients send as Bearer", secret=True)
    proxy_keys_extra: tuple[tuple[str, str], ...] = _setting(
        "PROXY_KEYS_EXTRA",
        (),
        "more keys, name:key,name:key; the name is logged",
        _named_keys,
        secret=True,
    )
    cors_allow_origins: tuple[str, ...] = _setting(
        "CORS_ALLOW_ORIGINS", ("*",), "origins of browser apps, comma-separated", _origins
    )
    max_body_bytes: int = _setting(
        "MAX_BODY_BYTES", 64 * MIB, "largest request body; a larger one gets 413", _size
    )
    upstream_connect_timeout_seconds: float = _setting(
        "UPSTREAM_CONNECT_TIMEOUT_SECONDS", 10.0, "to reach a provider", _seconds
    )
    upstream_idle_timeout_seconds: float = _setting(
        "UPSTREAM_IDLE_TIMEOUT_SECONDS", 300.0, "of silence from a provider; 0 is none", _seconds
    )
    upstream_timeout_seconds: float = _setting(
        "UPSTREAM_TIMEOUT_SECONDS", 1200.0, "for a whole call; 0 is none", _seconds
    )
    shutdown_delay_seconds: float = _setting(
        "SHUTDOWN_DELAY_SECONDS", 5.0, "still accepting after SIGTERM, for balancers", _seconds
    )
    shutdown_grace_seconds: float = _setting(
        "SHUTDOWN_GRACE_SECONDS", 120.0, "for calls under way after that", _seconds
    )
    log_bucket: str = _setting("LOG_BUCKET", "", "S3 bucket for the log objects")
    log_prefix: str = _setting("LOG_PREFIX", "", "put in front of every object's key")
    log_dir: Path | None = _setting(
        "LOG_DIR", None, "folder for the log objects, instead of a bucket", Path
    )
    log_queue_dir: Path = _setting(
        "LOG_QUEUE_DIR", Path("log-queue"), "folder of the durable queue; a local disk", Path
    )
    log_queue_max_bytes: int = _setting(
        "LOG_QUEUE_MAX_BYTES", 4096 * MIB, "room for the queue; beyond it new calls get 503", _size
    )
    log_object_max_bytes: int = _setting(
        "LOG_OBJECT_MAX_BYTES", 16 * MIB, "largest log object", _size
    )
    log_transcript_max_bytes: int = _setting(
        "LOG_TRANSCRIPT_MAX_BYTES", 4 * MIB, "most of one answer that is logged", _size
    )
    log_capture: CaptureMode = _setting(
        "LOG_CAPTURE", "summary", "what is logged of a call: metadata, summary or full", _capture
    )
    log_content_max: int = _setting(
        "LOG_CONTENT_MAX", 0, "characters of an answer's text that are logged; 0 is all", _count
    )
    log_reasoning_max: int = _setting(
        "LOG_REASONING_MAX", 0, "characters of its reasoning; 0 is all", _count
    )
    log_tool_result_max: int = _setting(
        "LOG_TOOL_RESULT_MAX", 20_000, "characters of each tool result; 0 is all", _count
    )
    log_user_question_max: int = _setting(
        "LOG_USER_QUESTION_MAX", 4_000, "characters of each user message; 0 is all", _count
    )
    flush_interval_seconds: int = _setting(
        "FLUSH_INTERVAL_SECONDS", 300, "time window of one object; divides a day", _window
    )
    s3_endpoint_url: str = _setting(
        "AWS_ENDPOINT_URL_S3", "", "S3 endpoint (AWS_S3_ENDPOINT_URL is read too)"
    )
    s3_region: str = _setting("AWS_REGION", "", "S3 region, where the store wants one")
    pod_name: str = _setting("POD_NAME", "", "written to the log as instance; else the host name")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read and check all settings; raises `SettingsError`. An empty value is the default."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable: str = item.metadata["variable"]
            text = environment.get(variable, "").strip()
            if variable == "AWS_ENDPOINT_URL_S3" and not text:
                text = environment.get("AWS_S3_ENDPOINT_URL", "").strip()
            if text:
                values[item.name] = _read(item, variable, text)
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.log_bucket and self.log_dir is not None:
            raise SettingsError(
                "LOG_BUCKET and LOG_DIR are both set, and the log has one sink: unset one of them"
            )
        if self.log_bucket.startswith("s3://") or "/" in self.log_bucket:
            raise SettingsError(
                "LOG_BUCKET takes a bucket's bare name; a path in it goes to LOG_PREFIX"
            )
        if "default" in dict(self.proxy_keys_extra):
            raise SettingsError("PROXY_KEYS_EXTRA: the name default belongs to PROXY_KEY")


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


def _read(item: "Field[Any]", variable: str, text: str) -> Any:
    try:
        return item.metadata["read"](text)
    except ValueError as error:
        why = str(error)
        if not why.startswith(("must", "names", "a window")):
            why = "is not a number"
        shown = f"={text}" if item.repr else ""
        raise SettingsError(f"{variable}{shown}: {why}") from None


def _shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, int) and default >= MIB and default % MIB == 0:
        return f"{default} = {default // MIB} MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


def from_process_environment() -> Settings:
    """The settings of this process; raises `SettingsError`."""
    return Settings.from_environment(os.environ)
