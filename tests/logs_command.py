"""Runs `open-llm-proxy logs` as people and programs do: piped in this process, or on a terminal."""

import argparse
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from given_answers import Fields
from open_llm_proxy.archive.commands import logs as logs_command
from open_llm_proxy.server.redaction.redactor import Redactor
from open_llm_proxy.server.settings import from_process_environment
from open_llm_proxy.server.sink_choice import reader_environment

COMMAND = (sys.executable, "-m", "open_llm_proxy.server.commands.cli", "logs")
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLUMNS": "200", "PAGER": "cat"}


@dataclass(frozen=True)
class Done:
    """What the command did with its output in a pipe."""

    returncode: int
    stdout: bytes
    stderr: str

    @property
    def objects(self) -> list[Fields]:
        """Its output, where it succeeded."""
        assert self.returncode == 0, self.stderr
        return [json.loads(line) for line in self.stdout.splitlines()]


Logs = Callable[..., Done]


def runner(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Logs:
    """Runs the command in this process, which starts in no time; see `on_a_terminal` too."""
    for name in list(os.environ):
        if name.startswith(("LOG_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder / "home"))
    parser = argparse.ArgumentParser()
    logs_command.add_command(
        parser.add_subparsers(),
        lambda: reader_environment(from_process_environment()),
        Redactor().value,
    )

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            file = folder / "stdin"
            file.write_bytes(stdin)
            with open(file) as opened:
                patch.setattr(sys, "stdin", opened)
                try:
                    chosen = parser.parse_args(("logs", *arguments))
                    code = chosen.run(chosen)
                except SystemExit as usage:
                    code = usage.code
        out, err = capsysbinary.readouterr()
        return Done(code, out, err.decode())

    return run


def on_a_terminal(*arguments: str, code: int = 0, **environment: str) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        (*COMMAND, *arguments),
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "TERM": "xterm", **environment},
    )
    os.close(follower)
    chunks = []
    try:
        while chunk := os.read(leader, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    os.close(leader)
    assert process.stderr is not None
    with process.stderr:
        assert process.wait(30) == code, process.stderr.read().decode()
    return b"".join(chunks).decode()


def plain(text: str) -> str:
    """A terminal's text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n")
