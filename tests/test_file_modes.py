"""Who may read what is written, whatever the umask: the owner, and of objects the group."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from open_llm_proxy.agent.transcript import write_whole
from open_llm_proxy.queue.damage.salvage_files import write_once
from open_llm_proxy.queue.durable_files import quarantine
from open_llm_proxy.queue.folder import adopt
from proxy_process import PROXY_KEY, ProxyProcess, one_provider
from relay_calls import CHAT, chat
from scripted_provider import ProviderProcess
from waiting import wait_until

UMASKS = (0o000, 0o022, 0o077, 0o027)


@pytest.fixture(params=UMASKS, ids=[f"{mask:03o}" for mask in UMASKS])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(root: Path) -> dict[str, set[str]]:
    """The modes of all folders and files below, the root's included."""
    found: dict[str, set[str]] = {"folder": set(), "file": set()}
    for path in (root, *root.rglob("*")):
        kind = "folder" if path.is_dir() else "file"
        found[kind].add(f"{stat.S_IMODE(path.stat().st_mode):o}")
    return found


OURS = {"folder": {"700"}, "file": {"600"}}


async def test_a_server_leaves_no_chat_to_others(
    start_proxy: Callable[..., ProxyProcess],
    provider_process: ProviderProcess,
    tmp_path: Path,
    umask: int,
) -> None:
    objects = tmp_path / "new" / "objects"
    queues = tmp_path / "fresh" / "queues"
    settings = {
        "LOG_DIR": str(objects),
        "LOG_QUEUE_DIR": str(queues),
        "FLUSH_INTERVAL_SECONDS": "1",
    }
    proxy = start_proxy(one_provider(provider_process.url), settings)
    await proxy.start()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        headers = {"Authorization": f"Bearer {PROXY_KEY}"}
        answer = await http.post(proxy.url + CHAT, content=chat(1), headers=headers)
        assert answer.status_code == 200
    assert modes(queues.parent) == OURS
    await wait_until(lambda: list(objects.glob("*/*.jsonl")), "an object")
    proxy.kill()
    await proxy.wait()
    assert modes(queues.parent) == OURS
    assert modes(objects.parent)["folder"] == {"750"}
    assert modes(objects)["file"] == {"640"}
    [left] = [path for path in queues.iterdir() if path.is_dir()]
    adopted = adopt(left)
    adopted.keep_copy()
    adopted.quarantine()
    assert modes(queues.parent) == OURS


def test_what_is_kept_of_damage_is_the_owners(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "queues"
    root.mkdir(mode=0o700)
    root.chmod(0o700)
    write_once(quarantine(root, "row", b"a chat").parent / "salvaged.jsonl", [b"a chat"])
    assert modes(root) == OURS


def test_transcripts_of_the_agent_are_the_owners(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "runs" / "one.json"
    write_whole(path, "a chat")
    write_whole(path, "another")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "another"


def test_folders_that_are_there_keep_their_modes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    quarantine(tmp_path, "row", b"a chat")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
