"""The S3 sink: what is certainly stored, what certainly is not, no secret in any message."""

import asyncio
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import stores
from open_llm_proxy.queue import s3
from open_llm_proxy.queue.batches import Batch
from open_llm_proxy.queue.s3 import has_s3_credentials
from open_llm_proxy.queue.sinks import (
    S3Sink,
    SinkFailure,
    SinkRefused,
    parse_s3_url,
)
from store_faults import Corrupt, Cut, FaultyProxy, StubStore, SwallowAnswer

BODY = b'{"queue_id":"0123456789abcdef","seq":1}\n' * 500
NAME = "2026-03-01/12-00-00-0123456789abcdef-0000000001-0000000500-0123456789ab.jsonl"


def batch_of(body: bytes = BODY, name: str = NAME) -> Batch:
    return Batch(1, 500, name, hashlib.md5(body).digest(), len(body), None)


def use(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """Give this process the store's settings and no other AWS setting."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def s3_sink(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], prefix: str = "", bucket: str = ""
) -> S3Sink:
    use(monkeypatch, env)
    endpoint = env["AWS_ENDPOINT_URL_S3"]
    return S3Sink(bucket or env["LOG_BUCKET"], prefix, endpoint_url=endpoint)


async def put(sink: S3Sink, body: bytes = BODY, name: str = NAME) -> None:
    await asyncio.to_thread(sink.put, batch_of(body, name), body)


@pytest.fixture(params=["moto", pytest.param("rgw", marks=pytest.mark.rgw)])
def store(request: pytest.FixtureRequest) -> stores.S3Store:
    """A bucket in moto, and one in the real RGW."""
    found: stores.S3Store = request.getfixturevalue(f"{request.param}_store")
    return found


async def test_an_object_arrives_whole_however_often_it_is_put(
    store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = s3_sink(monkeypatch, store.env(), prefix="logs-team/")
    await put(sink)
    await put(sink)
    assert list(store.objects()) == [(f"logs-team/{NAME}", BODY)]
    head = store.client.head_object(Bucket=store.bucket, Key=f"logs-team/{NAME}")
    assert head["ContentType"] == "application/x-ndjson"
    assert sink.identity == f"s3://{store.bucket}/logs-team/"


async def test_whether_an_object_is_there_can_be_asked(
    store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = s3_sink(monkeypatch, store.env())
    assert not await asyncio.to_thread(sink.holds, batch_of())
    await put(sink)
    assert await asyncio.to_thread(sink.holds, batch_of())
    assert not await asyncio.to_thread(sink.holds, batch_of(BODY[1:]))


async def test_a_missing_bucket_is_a_refusal(
    store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = s3_sink(monkeypatch, store.env(), bucket="no-such-bucket-here")
    with pytest.raises(SinkRefused, match=r"s3://no-such-bucket-here/ answered 404 NoSuchBucket"):
        await put(sink)


@pytest.mark.rgw
async def test_a_body_that_does_not_match_its_md5_is_refused_and_not_stored(
    rgw_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = s3_sink(monkeypatch, rgw_store.env())
    with pytest.raises(SinkRefused, match="400 BadDigest"):
        await asyncio.to_thread(sink.put, batch_of(), BODY[:-2] + b"!\n")
    assert list(rgw_store.objects()) == []


@pytest.mark.rgw
async def test_a_body_corrupted_on_the_wire_is_refused_and_not_stored(
    rgw_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultyProxy(rgw_store.server.address) as proxy:
        sink = s3_sink(monkeypatch, rgw_store.env(proxy.endpoint))
        for at in (0, 0.5, -1):
            proxy.break_next(Corrupt(at))
            with pytest.raises(SinkRefused):
                await put(sink)
        assert list(rgw_store.objects()) == []
        await put(sink)
    assert list(rgw_store.objects()) == [(NAME, BODY)]


@pytest.mark.rgw
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_wrong_keys_are_a_refusal_that_names_no_key(
    rgw_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    secret = "Sup3rS3cretValueOfTheTest"
    sink = s3_sink(monkeypatch, rgw_store.env() | {wrong: secret})
    with pytest.raises(SinkRefused, match="answered 403 ") as raised:
        await put(sink)
    assert secret not in str(raised.value)
    assert raised.value.__cause__ is None
    assert secret not in repr(sink)


@pytest.mark.rgw
async def test_objects_arrive_over_https(
    rgw_tls_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = s3_sink(monkeypatch, rgw_tls_store.env())
    await put(sink)
    assert list(rgw_tls_store.objects()) == [(NAME, BODY)]


@pytest.mark.rgw
async def test_a_store_with_an_unknown_certificate_gets_nothing(
    rgw_tls_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = rgw_tls_store.env()
    del env["AWS_CA_BUNDLE"]
    with pytest.raises(SinkRefused, match="TLS failed"):
        await put(s3_sink(monkeypatch, env))


@pytest.mark.parametrize("at", [1, 0.5, -1])
async def test_a_put_that_is_cut_may_or_may_not_be_stored(
    moto_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch, at: int | float
) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        sink = s3_sink(monkeypatch, moto_store.env(proxy.endpoint))
        proxy.break_next(Cut(at))
        with pytest.raises(SinkFailure) as raised:
            await put(sink)
        assert not isinstance(raised.value, SinkRefused)
        await put(sink)
    assert list(moto_store.objects()) == [(NAME, BODY)]


async def test_an_answer_that_is_lost_is_no_refusal_although_the_object_is_there(
    moto_store: stores.S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        sink = s3_sink(monkeypatch, moto_store.env(proxy.endpoint))
        proxy.break_next(SwallowAnswer())
        with pytest.raises(SinkFailure) as raised:
            await put(sink)
        assert not isinstance(raised.value, SinkRefused)
    assert list(moto_store.objects()) == [(NAME, BODY)]


@pytest.mark.parametrize(
    ("status", "code", "is_refusal"),
    [
        (400, "InvalidRequest", True),
        (403, "AccessDenied", True),
        (403, "RequestTimeTooSkewed", True),
        (404, "NoSuchBucket", True),
        (409, "OperationAborted", True),
        (429, "TooManyRequests", True),
        (408, "RequestTimeout", False),
        (500, "InternalError", False),
        (502, "", False),
        (503, "SlowDown", False),
    ],
)
async def test_only_a_4xx_proves_that_nothing_was_stored_and_each_put_is_one_attempt(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, is_refusal: bool
) -> None:
    async with StubStore() as stub:
        sink = s3_sink(monkeypatch, stub.env())
        stub.answer_always(status, code)
        with pytest.raises(SinkFailure, match=f"answered {status} {code}".rstrip()) as raised:
            await put(sink)
        assert isinstance(raised.value, SinkRefused) == is_refusal
        assert len(stub.requests) == 1
        stub.answer_always(200)
        await put(sink)
        assert list(stub.objects()) == [(NAME, BODY)]


async def test_a_put_carries_its_md5_and_no_checksum_that_older_stores_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with StubStore() as stub:
        await put(s3_sink(monkeypatch, stub.env()))
        (request,) = stub.requests
    assert request.target == f"/{stub.bucket}/{NAME}"
    assert request.header("Content-MD5") == batch_of().content_md5
    assert request.header("Content-Length") == str(len(BODY))
    assert request.header("Transfer-Encoding") is None
    assert not [name for name, _ in request.headers if name.lower().startswith("x-amz-checksum")]


async def test_a_store_that_refuses_connections_or_never_answers_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_SECONDS", 1)
    async with StubStore() as stub:
        async with FaultyProxy(("127.0.0.1", stub.port)) as proxy:
            sink = s3_sink(monkeypatch, stub.env() | {"AWS_ENDPOINT_URL_S3": proxy.endpoint})
            proxy.freeze()
            with pytest.raises(SinkFailure, match="did not answer in time"):
                await put(sink)
            proxy.thaw()
            await proxy.refuse()
            with pytest.raises(SinkFailure, match="cannot be reached"):
                await put(sink)
            await proxy.accept()
            await put(sink)


async def test_a_secret_that_botocore_cannot_send_appears_in_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with StubStore() as stub:
        env = stub.env() | {"AWS_ACCESS_KEY_ID": "broken\nkey", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}
        with pytest.raises(SinkFailure) as raised:
            await put(s3_sink(monkeypatch, env))
    assert "broken" not in str(raised.value)
    assert "s3cr3t" not in str(raised.value)


@pytest.fixture
def metadata_address() -> Iterator[tuple[str, list[bytes]]]:
    """Stands where EC2's metadata service would be, and notes who asks it."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000))

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_without_credentials_nobody_is_asked_for_any(
    monkeypatch: pytest.MonkeyPatch, metadata_address: tuple[str, list[bytes]]
) -> None:
    endpoint, asked = metadata_address
    use(monkeypatch, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint})
    assert not has_s3_credentials()
    sink = S3Sink("bucket", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(SinkFailure, match="no S3 credentials"):
        sink.put(batch_of(), BODY)
    assert asked == []


def test_credentials_come_from_the_environment_or_from_shared_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert has_s3_credentials()
    shared = tmp_path / "credentials"
    shared.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    use(monkeypatch, {"AWS_SHARED_CREDENTIALS_FILE": str(shared)})
    assert has_s3_credentials()


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/logs-team/", ("bucket", "logs-team/")),
        ("s3://bucket/a/b", ("bucket", "a/b")),
    ],
)
def test_an_s3_url_names_bucket_and_prefix(url: str, parts: tuple[str, str]) -> None:
    assert parse_s3_url(url) == parts


@pytest.mark.parametrize("url", ["bucket", "https://bucket/x", "s3://", "s3:///x", "s3://b/x?y"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        parse_s3_url(url)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AWS_ENDPOINT_URL_S3": "s3.example.org"}, "begins with https:// or http://"),
        ({"AWS_ENDPOINT_URL_S3": "http://s3.example .org"}, "begins with https:// or http://"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nope"}, "AWS_PROFILE names a profile that does not exist"),
        ({"AWS_DEFAULT_REGION": "us east"}, "region is not a valid name"),
        ({"AWS_CONFIG_FILE": __file__}, "configuration file cannot be parsed"),
    ],
    ids=["no-scheme", "blank-in-endpoint", "half-a-pair", "profile", "region", "config-file"],
)
def test_wrong_settings_are_a_sentence(
    wrong: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k"}
    use(monkeypatch, env | {"AWS_SECRET_ACCESS_KEY": "s"} | wrong)
    with pytest.raises(s3.S3SettingsError, match=said):
        assert has_s3_credentials()
        S3Sink("logs", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])


class RedirectsEverything(http.server.BaseHTTPRequestHandler):
    """A store that sends every request elsewhere, and does not say where."""

    requests: ClassVar[list[str]] = []

    def do_PUT(self) -> None:
        self.requests.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(301)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_PUT

    def log_message(self, *_: object) -> None:
        return


async def test_a_store_that_redirects_everything_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RedirectsEverything)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "LOG_BUCKET": "logs"}
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(SinkFailure, match="answered 301"):
            await put(s3_sink(monkeypatch, env | {"AWS_ENDPOINT_URL_S3": endpoint}))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert RedirectsEverything.requests == ["PUT", "HEAD"]


@pytest.mark.parametrize("bucket", ["logs-<your-namespace>", "a/b", "arn:aws:s3:::logs"])
async def test_an_impossible_bucket_is_a_sentence(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StubStore() as store:
        with pytest.raises(SinkFailure, match="the name of the bucket is not valid"):
            await put(s3_sink(monkeypatch, store.env(), bucket=bucket))
