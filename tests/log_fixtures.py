"""A log with every kind of row, made once: `pytest_plugins = ("log_fixtures",)` takes it in."""

import asyncio
from pathlib import Path

import pytest

import every_kind
import log_contract
import logs_command
import wire
from given_answers import Fields
from stores import DirectoryStore


@pytest.fixture(scope="session")
def every_kind_store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """The log's objects in a folder, as the real server left them there."""
    folder = tmp_path_factory.mktemp("every-kind")
    store = DirectoryStore(folder / "objects")
    store.folder.mkdir()
    dead_url = f"http://127.0.0.1:{wire.free_port()}"
    asyncio.run(every_kind.fill(store, folder / "proxy", dead_url))
    return store


@pytest.fixture(scope="session")
def every_kind_rows(every_kind_store: DirectoryStore) -> list[Fields]:
    """The same as rows."""
    objects = every_kind_store.objects()
    return [row for _, data in objects for row in log_contract.read_rows(data.splitlines())]


@pytest.fixture
def logs(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> logs_command.Logs:
    """Runs `open-llm-proxy logs` in this process, with its output in a pipe."""
    return logs_command.runner(capsysbinary, monkeypatch, tmp_path)
