"""Settings: defaults, types, and one sentence for each value that cannot be right."""

from pathlib import Path

import pytest

from open_llm_proxy.server.settings import Settings, SettingsError, settings_help


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings.port == 8002
    assert settings.flush_interval_seconds == 300
    assert settings.log_queue_dir == Path("log-queue")
    assert settings.shutdown_delay_seconds == 5
    assert settings.upstream_timeout_seconds == 1200
    assert settings.log_bucket == ""
    assert settings.log_dir is None


def test_an_empty_value_is_the_default() -> None:
    assert Settings.from_environment({"PORT": " ", "LOG_DIR": ""}) == Settings()


def test_values_are_read_with_their_types() -> None:
    settings = Settings.from_environment(
        {
            "PORT": "0",
            "UPSTREAM_IDLE_TIMEOUT_SECONDS": "0.5",
            "LOG_DIR": "/var/log/objects",
            "CORS_ALLOW_ORIGINS": "https://a.example/, https://b.example",
            "PROXY_KEYS_EXTRA": "team:key-one-123,app:key:with:colons",
        }
    )
    assert settings.port == 0
    assert settings.upstream_idle_timeout_seconds == 0.5
    assert settings.log_dir == Path("/var/log/objects")
    assert settings.cors_allow_origins == ("https://a.example", "https://b.example")
    assert dict(settings.proxy_keys_extra) == {"team": "key-one-123", "app": "key:with:colons"}


def test_config_is_the_first_file_that_exists_else_the_last(tmp_path: Path) -> None:
    mounted, shipped = tmp_path / "mounted" / "config.json", tmp_path / "config.json"

    def chosen(*paths: Path) -> Path:
        return Settings.from_environment({"CONFIG": ":".join(map(str, paths))}).config

    assert chosen(mounted, shipped) == shipped  # whose absence is then the error
    shipped.write_text("{}")
    assert chosen(mounted, shipped) == chosen(shipped, mounted) == shipped
    mounted.mkdir(parents=True)  # a folder is no file
    assert chosen(mounted, shipped) == shipped
    mounted.rmdir()
    mounted.write_text("{}")
    assert chosen(mounted, shipped) == mounted
    with pytest.raises(SettingsError, match="CONFIG=:: must be the path of a file"):
        Settings.from_environment({"CONFIG": ":"})


def test_both_names_of_the_s3_endpoint_are_read() -> None:
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT_URL"):
        settings = Settings.from_environment({variable: "http://127.0.0.1:1"})
        assert settings.s3_endpoint_url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("PORT", "http", "PORT=http: must be a whole number, such as 8002"),
        ("PORT", "70000", "must be a port number from 0 to 65535"),
        ("MAX_BODY_BYTES", "0", "must be a whole number of bytes, at least 1"),
        ("UPSTREAM_TIMEOUT_SECONDS", "-1", "at least 0"),
        ("UPSTREAM_TIMEOUT_SECONDS", "nan", "at least 0"),
        ("UPSTREAM_TIMEOUT_SECONDS", "inf", "at least 0"),
        (
            "FLUSH_INTERVAL_SECONDS",
            "5m",
            "FLUSH_INTERVAL_SECONDS=5m: must be a whole number of seconds, such as 300",
        ),
        ("FLUSH_INTERVAL_SECONDS", "7", "must divide 86,400"),
        ("FLUSH_INTERVAL_SECONDS", "0", "at least 1"),
        ("PROXY_KEYS_EXTRA", "team:", "must have the form name:key,name:key"),
        ("PROXY_KEYS_EXTRA", ":key", "must have the form name:key,name:key"),
        ("PROXY_KEYS_EXTRA", "a:key-1,a:key-2", "must not use the name 'a' twice"),
        ("PROXY_KEYS_EXTRA", "default:some-key", "the name of PROXY_KEY"),
        ("LOG_BUCKET", "s3://logs-ns", "bare name of a bucket"),
        ("LOG_CAPTURE", "all\nof it", "must be one of metadata, summary, full"),
    ],
)
def test_a_value_that_cannot_be_right_is_one_sentence_with_its_variable(
    variable: str, value: str, part: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({variable: value})
    message = str(raised.value)
    assert variable in message
    assert part in message
    assert "\n" not in message


def test_two_sinks_are_refused() -> None:
    with pytest.raises(SettingsError, match="Set LOG_BUCKET or LOG_DIR, not both"):
        Settings.from_environment({"LOG_BUCKET": "logs-ns", "LOG_DIR": "logs"})


def test_every_mistake_is_reported_and_the_other_values_are_read() -> None:
    wrong = {"PORT": "x", "LOG_CAPTURE": "all", "LOG_BUCKET": "a/b", "LOG_DIR": "logs"}
    settings, mistakes = Settings.read(wrong | {"HOST": "::1"})
    assert (settings.host, settings.port, settings.log_capture) == ("::1", 8002, "summary")
    assert [mistake.split()[0] for mistake in mistakes] == [
        "PORT=x:", "LOG_CAPTURE=all:", "Set", "LOG_BUCKET=a/b:",
    ]  # fmt: skip
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment(wrong)
    assert list(raised.value.mistakes) == mistakes


def test_no_key_is_shown_in_a_repr_or_an_error() -> None:
    secret = "the-secret-key-itself"
    settings = Settings.from_environment({"PROXY_KEY": secret, "PROXY_KEYS_EXTRA": f"app:{secret}"})
    assert secret not in repr(settings)
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({"PROXY_KEYS_EXTRA": f":{secret}"})
    assert secret not in str(raised.value)


def test_a_key_without_a_name_is_named_by_its_hash() -> None:
    keys = "first-bare-key, app:key-of-app,second-bare-key,first-bare-key"
    settings = Settings.from_environment({"PROXY_KEYS_EXTRA": keys})
    assert settings.proxy_keys_extra == (
        ("852c1b", "first-bare-key"), ("app", "key-of-app"), ("fe4c32", "second-bare-key"),
    )  # fmt: skip


def test_names_of_the_original_proxy_are_read_unless_the_own_one_is_set() -> None:
    old = {"LOG_CAPTURE_MODE": "Full", "FLUSH_INTERVAL": "60"}
    settings = Settings.from_environment(old)
    assert (settings.log_capture, settings.flush_interval_seconds) == ("full", 60)
    settings = Settings.from_environment(old | {"LOG_CAPTURE": "metadata"})
    assert (settings.log_capture, settings.flush_interval_seconds) == ("metadata", 60)
    with pytest.raises(SettingsError, match="FLUSH_INTERVAL=7: must divide 86,400"):
        Settings.from_environment({"FLUSH_INTERVAL": "7"})


def test_the_help_names_every_variable() -> None:
    shown = settings_help()
    for variable in ("HOST", "PROXY_KEY", "LOG_QUEUE_MAX_BYTES", "AWS_REGION", "POD_NAME"):
        assert f"  {variable} " in shown
