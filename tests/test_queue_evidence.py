"""An S3 store is believed by evidence; whatever else answers in its place gets no row deleted."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import wire
from open_llm_proxy.queue.sinks import S3Sink, SinkFailure, SinkRefused
from queue_fixtures import new_queue, plain
from test_queue_sinks import BODY, batch_of, put, s3_sink

HTML = b"<html><body>Please sign in to the guest network</body></html>"

# What a server answers to a request: the whole answer, and whether the connection ends behind it.
Answer = Callable[[wire.Request], bytes]


def answer(status: str, *headers: str, body: bytes = b"", length: int | None = None) -> Answer:
    """The same answer to every request; `length` claims another length than the body has."""
    claimed = len(body) if length is None else length
    lines = (f"HTTP/1.1 {status}", *headers, "Connection: close", f"Content-Length: {claimed}")

    def answered(request: wire.Request) -> bytes:
        return "\r\n".join((*lines, "", "")).encode() + (b"" if request.method == "HEAD" else body)

    return answered


def by_method(put: Answer, head: Answer) -> Answer:
    return lambda request: (head if request.method == "HEAD" else put)(request)


@asynccontextmanager
async def answering(
    answered: Answer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[S3Sink, list[str]]]:
    """A sink whose requests are all answered so, and the methods of those requests."""
    methods: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (request := await wire.read_request(reader, writer)) is not None:
            methods.append(request.method)
            writer.write(answered(request))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "LOG_BUCKET": "logs"}
    async with server:
        yield s3_sink(monkeypatch, env | {"AWS_ENDPOINT_URL_S3": endpoint}), methods


ETAG = f'ETag: "{hashlib.md5(BODY).hexdigest()}"'
OTHER_ETAG = f'ETag: "{hashlib.md5(b"").hexdigest()}"'
HTML_HEADER = "Content-Type: text/html"
NO_PROOF = {
    "html": answer("200 OK", HTML_HEADER, body=HTML),
    "empty": answer("200 OK"),
    "other-etag": answer("200 OK", OTHER_ETAG),
    "weak-etag": answer("200 OK", f"ETag: W/{ETAG[6:]}"),
    "no-content": answer("204 No Content", ETAG),
    "accepted": answer("202 Accepted", ETAG),
    "moved": answer("301 Moved Permanently", "Location: http://127.0.0.1:9/"),
    "found": answer("302 Found", "Location: http://127.0.0.1:9/login", body=HTML),
    "temporary": answer("307 Temporary Redirect", "Location: http://127.0.0.1:9/login"),
    "cut-html": answer("200 OK", HTML_HEADER, body=HTML, length=5000),
    "cut-with-etag": answer("200 OK", ETAG, body=b"<", length=100),
    "head-of-another-length": by_method(answer("200 OK"), answer("200 OK", length=7)),
    "no-permission-to-look": by_method(answer("200 OK"), answer("403 Forbidden")),
    "head-is-redirected": by_method(
        answer("200 OK"), answer("302 Found", "Location: /", length=len(BODY))
    ),
}
PROOF = {
    "etag": answer("200 OK", ETAG),
    "etag-without-quotes": answer("200 OK", ETAG.replace('"', "")),
    "sse-kms": answer("200 OK", OTHER_ETAG, "x-amz-server-side-encryption: aws:kms"),
    "sse-c": answer(
        "200 OK", OTHER_ETAG, "x-amz-server-side-encryption-customer-algorithm: AES256"
    ),
    "head": by_method(answer("200 OK"), answer("200 OK", length=len(BODY))),
}


@pytest.mark.parametrize("answered", NO_PROOF.values(), ids=NO_PROOF.keys())
async def test_what_proves_nothing_is_a_failure_and_may_have_stored_it(
    answered: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(answered, monkeypatch) as (sink, _):
        with pytest.raises(SinkFailure) as raised:
            await put(sink)
    assert not isinstance(raised.value, SinkRefused)


@pytest.mark.parametrize("answered", PROOF.values(), ids=PROOF.keys())
async def test_what_only_a_store_says_is_believed(
    answered: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(answered, monkeypatch) as (sink, _):
        await put(sink)


async def test_the_right_to_write_is_enough_where_the_store_names_the_md5(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering(PROOF["etag"], monkeypatch) as (sink, methods):
        await put(sink)
    assert methods == ["PUT"]


async def test_the_failure_says_what_to_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(NO_PROOF["html"], monkeypatch) as (sink, _):
        with pytest.raises(SinkFailure, match="grant the credentials the right to read"):
            await put(sink)


async def test_a_captive_portal_gets_no_row_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(NO_PROOF["html"], monkeypatch) as (sink, _):
        queue = new_queue(tmp_path, sink)
        await queue.writer.append(plain(1, 2, 3))
        state = await queue.advance()
    assert (state.queued_rows, state.uploaded_rows) == (3, 0)
    await queue.close()


async def test_nothing_was_stored_where_not_a_byte_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name of no bucket, a key that no header can carry, nobody there, TLS to a plain port."""
    async with answering(PROOF["etag"], monkeypatch) as (sink, methods):
        port = sink._client.meta.endpoint_url.rpartition(":")[2]
        for bucket, key, endpoint in (
            ("logs-<your-namespace>", "k", f"http://127.0.0.1:{port}"),
            ("logs", "k\n", f"http://127.0.0.1:{port}"),
            ("logs", "k", "http://127.0.0.1:9"),
            ("logs", "k", "http://no-such-host.invalid"),
            ("logs", "k", f"https://127.0.0.1:{port}"),
        ):
            env = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "s"}
            tried = s3_sink(monkeypatch, env | {"AWS_ENDPOINT_URL_S3": endpoint}, bucket=bucket)
            with pytest.raises(SinkRefused):
                await asyncio.to_thread(tried.put, batch_of(), BODY)
    assert methods == []
