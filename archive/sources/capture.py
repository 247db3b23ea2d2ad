"""Entries out of a captured stdout: what kubectl, a container runtime or Docker made of the lines.

A runtime puts time and stream in front (CRI: ``2026-04-07T10:00:00Z stdout F …``), cuts
lines of more than 16 KiB into parts (``P``), Docker packs them into JSON, ``kubectl logs`` adds
``--timestamps`` and ``--prefix`` and joins the parts again, with whatever stderr said in between.
All that is undone here. Lines that are no entries, such as the process's own messages, are counted;
those that began as one and cannot be read are told apart, since then something is missing.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from open_llm_proxy.archive.sources.lines import MAX_LINE_BYTES
from open_llm_proxy.archive.sources.source import Problems

OTHER_LINES = "lines that are no log entries"
BROKEN_LINES = "log entries that were cut or damaged"

_PREFIX = re.compile(rb"\[[\w./-]+\] ")
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_CRI = re.compile(rb"(stdout|stderr) ([PF])(?::\w+)* ")
_MESSAGE = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    rb"|Traceback \(most recent"
)
_ENTRY = re.compile(rb'\{\s*"(?:queue_id|seq|timestamp|type)"')
_WAITS_FOR_LINES = 200


class _Start(msgspec.Struct):
    """What tells an entry from other JSON, and Docker's lines from both."""

    timestamp: str | None = None
    type: str | None = None
    log: str | None = None
    stream: str | bool | None = None


class _Stream:
    """What one container has written of a line so far."""

    def __init__(self) -> None:
        self.partial = b""
        self.fragments: list[bytes] = []  # how the line may have begun, before a message cut in
        self.waited = 0


class CaptureReader:
    """Finds the entries among the lines of a capture; what is left over goes to `problems`."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._streams: dict[bytes, _Stream] = {}
        self._decoder = msgspec.json.Decoder(_Start)

    def entries(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The entries as they were written, one a line, without heads."""
        for line in lines:
            yield from self._unwrapped(line.rstrip(b"\r"))
        for stream in self._streams.values():
            if stream.partial.startswith(b"{"):
                self._problems.add(BROKEN_LINES, _shown(stream.partial))
            self._give_up(stream)

    def _unwrapped(self, line: bytes) -> Iterator[bytes]:
        """Undo what stands around the line."""
        container = b""
        if prefix := _PREFIX.match(line):
            container, line = prefix.group(), line[prefix.end() :]
        stream = self._streams.get(container)
        if stream is None:
            stream = self._streams[container] = _Stream()
        is_partial = False
        time = _TIME.match(line)
        if time and (cri := _CRI.match(line, time.end())):
            line = line[cri.end() :]
            if cri[1] == b"stderr":
                self._other(line)
                return
            is_partial = cri[2] == b"P"
        elif time and line[time.end() : time.end() + 1] == b"{":
            line = line[time.end() :]
        elif line.startswith(b'{"log":'):
            docker = self._start(line)
            if docker is not None and docker.log is not None and docker.type is None:
                if docker.stream == "stderr":
                    self._other(line)
                    return
                line = docker.log.encode("utf-8", "replace")
                is_partial = not line.endswith(b"\n")
                line = line.rstrip(b"\r\n")
        line = stream.partial + line
        stream.partial = b""
        if is_partial and len(line) <= MAX_LINE_BYTES:
            stream.partial = line
            return
        yield from self._line(stream, line)

    def _line(self, stream: _Stream, line: bytes) -> Iterator[bytes]:
        for begun in (b"", *stream.fragments):
            start = self._start(begun + line)
            if start is not None and start.timestamp is not None and start.type is not None:
                if not begun:
                    self._give_up(stream)
                stream.fragments = []
                if start.type != "schema":
                    yield begun + line
                return
        messages = [found.start() for found in _MESSAGE.finditer(line)]
        if _ENTRY.match(line) and start is None:
            self._give_up(stream)
            if messages and messages[-1]:
                stream.fragments = [line[:at] for at in messages]
            else:
                self._problems.add(BROKEN_LINES, _shown(line))
        elif stream.fragments and messages and messages[0]:
            stream.fragments = [begun + line[:at] for begun in stream.fragments for at in messages][
                :8
            ]
        else:
            self._other(line)
            stream.waited += 1
            if stream.waited > _WAITS_FOR_LINES:
                self._give_up(stream)

    def _start(self, line: bytes) -> _Start | None:
        if not line.startswith(b"{"):
            return None
        try:
            return self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _give_up(self, stream: _Stream) -> None:
        """A line that began before will not be completed."""
        if stream.fragments:
            self._problems.add(BROKEN_LINES, _shown(stream.fragments[0]))
        stream.fragments = []
        stream.waited = 0

    def _other(self, line: bytes) -> None:
        if line.strip():
            self._problems.add(OTHER_LINES, is_short=False)


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))
