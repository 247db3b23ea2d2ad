"""The stores and the faulty pieces in front of them do what drain tests rely on."""

import asyncio
import base64
import hashlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from store_faults import Corrupt, Cut, FaultyProxy, StubStore, SwallowAnswer
from stores import DirectoryStore, Rgw, S3Store, StoreUnavailable

BODY = bytes(range(256)) * 4000
Settings = dict[str, str]


@asynccontextmanager
async def uploads(settings: Settings) -> AsyncIterator[Any]:
    """Puts one object under a key, in a thread, as the drain does: no retries, with its MD5."""
    client = boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_REGION"],
        verify=settings.get("AWS_CA_BUNDLE"),
        config=Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            read_timeout=5,
        ),
    )

    async def put(key: str, body: bytes = BODY) -> Any:
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        options = {"Bucket": settings["LOG_BUCKET"], "Key": key, "Body": body, "ContentMD5": md5}
        return await asyncio.to_thread(lambda: client.put_object(**options))

    try:
        yield put
    finally:
        client.close()


def test_a_directory_store_lists_whole_objects_only(directory_store: DirectoryStore) -> None:
    day = directory_store.folder / "2026-04-07"
    day.mkdir()
    (day / "b.jsonl").write_bytes(b"2")
    (day / "a.jsonl").write_bytes(b"1")
    (day / "c.jsonl.tmp").write_bytes(b"3")
    assert list(directory_store.objects()) == [
        ("2026-04-07/a.jsonl", b"1"),
        ("2026-04-07/b.jsonl", b"2"),
    ]


async def test_a_moto_bucket_takes_objects_and_counts_versions(moto_store: S3Store) -> None:
    moto_store.keep_versions()
    async with uploads(moto_store.env()) as put:
        for body in (b"1", b"2"):
            await put("2026-04-07/a.jsonl", body)
    assert list(moto_store.objects()) == [("2026-04-07/a.jsonl", b"2")]
    assert moto_store.versions() == {"2026-04-07/a.jsonl": 2}


@pytest.mark.rgw
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_real_rgw_takes_objects(
    request: pytest.FixtureRequest, rgw: Rgw, scheme: str
) -> None:
    name = "rgw_store" if scheme == "http" else "rgw_tls_store"
    store: S3Store = request.getfixturevalue(name)
    assert store.server.endpoint.startswith(f"{scheme}://")
    async with uploads(store.env()) as put:
        await put("2026-04-07/a.jsonl", b"1")
    assert list(store.objects()) == [("2026-04-07/a.jsonl", b"1")]


def test_an_rgw_that_cannot_run_gives_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGW_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="nothing answers at http"):
        Rgw(tmp_path)
    monkeypatch.delenv("RGW_ENDPOINT")
    monkeypatch.setenv("RGW_HTTP_PORT", "1")
    failed = subprocess.CompletedProcess((), 1, "", "noise\nrgw.sh: needs root")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(StoreUnavailable, match=r"^rgw.sh: needs root$"):
        Rgw(tmp_path)


@pytest.mark.rgw
@pytest.mark.parametrize("at", [0, 1, 0.5, -1])
async def test_a_cut_put_leaves_no_object_and_the_next_one_passes(
    rgw_store: S3Store, at: int | float
) -> None:
    async with FaultyProxy(rgw_store.server.address) as proxy:
        async with uploads(rgw_store.env(proxy.endpoint)) as put:
            proxy.break_next(Cut(at))
            with pytest.raises(BotoCoreError):
                await put("cut.jsonl")
            await proxy.hit(1)
            assert not list(rgw_store.objects())
            await put("cut.jsonl")
    assert list(rgw_store.objects()) == [("cut.jsonl", BODY)]


@pytest.mark.rgw
async def test_a_real_rgw_refuses_a_flipped_bit(rgw_store: S3Store) -> None:
    async with FaultyProxy(rgw_store.server.address) as proxy:
        async with uploads(rgw_store.env(proxy.endpoint)) as put:
            for at in (0, 0.5, -1):
                proxy.break_next(Corrupt(at))
                with pytest.raises(ClientError, match=r"BadDigest|SHA256Mismatch"):
                    await put("flipped.jsonl")
    assert proxy.hits == 3 and not list(rgw_store.objects())


async def test_a_flipped_bit_is_one_bit_where_the_store_does_not_look(moto_store: S3Store) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        async with uploads(moto_store.env(proxy.endpoint)) as put:
            proxy.break_next(Corrupt(1000))
            await put("flipped.jsonl")
    ((_, stored),) = moto_store.objects()
    assert [i for i, pair in enumerate(zip(BODY, stored, strict=True)) if pair[0] != pair[1]] == [
        1000
    ]


async def test_a_swallowed_answer_leaves_the_object(moto_store: S3Store) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        async with uploads(moto_store.env(proxy.endpoint)) as put:
            await put("before.jsonl", b"1")
            proxy.break_next(SwallowAnswer())
            with pytest.raises(BotoCoreError):
                await put("swallowed.jsonl")
            await proxy.hit(1)
            await put("after.jsonl", b"3")
    assert [key for key, _ in moto_store.objects()] == [
        "after.jsonl",
        "before.jsonl",
        "swallowed.jsonl",
    ]


async def test_a_frozen_store_answers_after_the_thaw(moto_store: S3Store) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        async with uploads(moto_store.env(proxy.endpoint)) as put:
            proxy.freeze()
            upload = asyncio.create_task(put("frozen.jsonl"))
            done, _ = await asyncio.wait([upload], timeout=0.5)
            assert not done
            proxy.thaw()
            await upload
    assert list(moto_store.objects()) == [("frozen.jsonl", BODY)]


async def test_a_refusing_store_comes_back_on_its_port(moto_store: S3Store) -> None:
    async with FaultyProxy(moto_store.server.address) as proxy:
        async with uploads(moto_store.env(proxy.endpoint)) as put:
            await put("a.jsonl")
            await proxy.refuse()
            with pytest.raises(BotoCoreError, match="Could not connect"):
                await put("b.jsonl")
            await proxy.accept()
            await put("b.jsonl")
    assert len(list(moto_store.objects())) == 2


async def test_the_stub_answers_each_put_as_told() -> None:
    async with StubStore() as store, uploads(store.env()) as put:
        store.answer_next(503, "SlowDown")
        store.answer_next(403, "RequestTimeTooSkewed", times=2)
        for code in ("SlowDown", "RequestTimeTooSkewed", "RequestTimeTooSkewed"):
            with pytest.raises(ClientError, match=code):
                await put("2026-04-07/a.jsonl", b"1")
        await put("2026-04-07/a.jsonl", b"1")
        store.refuse_keys("b.jsonl", 500, "InternalError")
        with pytest.raises(ClientError, match="InternalError"):
            await put("b.jsonl")
        store.answer_always(404, "NoSuchBucket")
        with pytest.raises(ClientError, match="NoSuchBucket"):
            await put("c.jsonl")
        await store.put(6)
    assert list(store.objects()) == [("2026-04-07/a.jsonl", b"1")]
    assert store.requests[0].header("Content-MD5") and store.requests[0].body == b"1"


async def test_the_stub_store_refuses_a_changed_body_and_tells_what_was_overwritten() -> None:
    async with StubStore() as store, FaultyProxy(("127.0.0.1", store.port)) as wire:
        async with uploads({**store.env(), "AWS_ENDPOINT_URL_S3": wire.endpoint}) as put:
            wire.break_next(Corrupt(0))
            with pytest.raises(ClientError, match="BadDigest"):
                await put("a.jsonl", b"1")
            for body in (b"1", b"1"):
                await put("a.jsonl", body)
            assert not store.overwritten
            await put("a.jsonl", b"2")
    assert store.overwritten == {"a.jsonl"}
    assert list(store.objects()) == [("a.jsonl", b"2")]
    store.forget()
    assert not list(store.objects()) and not store.requests
