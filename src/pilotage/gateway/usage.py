"""What Envoy's access log says of requests: that they run, that they ended, and what they used."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

READ_BYTES = 1024 * 1024


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer. `None` is "the engine didn't say"."""

    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


UNKNOWN = Usage(prompt_tokens=None, cached_tokens=None, output_tokens=None)


class LogEntry(msgspec.Struct, kw_only=True):
    """One line of the access log: a request that still runs or has ended. Fields are as Envoy writes them."""

    type: str
    lease: str | None = None
    host: str | None = None
    code: int = 0
    details: str = ""
    flags: str = ""
    duration_ms: float = 0
    first_body_ms: float | None = None
    said_usage: dict[str, float] | None = msgspec.field(name="usage", default=None)
    request_id: str | None = None
    traceparent: str | None = None
    attempts: int = 0

    @property
    def ended(self) -> bool:
        """The request is over."""
        return self.type == "DownstreamEnd"

    @property
    def duration_s(self) -> float:
        """From the first byte of the request to the last of the answer."""
        return self.duration_ms / 1000

    @property
    def first_body_s(self) -> float | None:
        """From the first byte of the request to the first of the answer's body."""
        return None if self.first_body_ms is None else self.first_body_ms / 1000

    @property
    def reason(self) -> str:
        """What became of the request, as one of a few words."""
        if self.code < 400 and (not self.flags or self.flags == "-"):
            return "ok"
        if "DC" in self.flags or self.details.startswith("downstream"):
            return "client_left"
        if any(flag in self.flags for flag in ENGINE_FAILED):
            return "engine_failed"
        if any(flag in self.flags for flag in ("SI", "UT")):
            return "timeout"
        return "ok" if self.code < 400 else "refused"

    @property
    def usage(self) -> Usage:
        """Tokens, by what the engine said."""
        raw = self.said_usage
        if raw is None:
            return UNKNOWN
        # OpenAI's object is final; llama.cpp's timings run along, with the cached part of the prompt counted apart.
        prompt: float | None
        cached: float | None
        output: float | None
        if "completion_tokens" in raw:
            prompt, output = raw.get("prompt_tokens"), raw.get("completion_tokens")
            cached = raw.get("cached_tokens", raw.get("timings_cached"))
        elif "timings_predicted" in raw:
            cached, output = raw.get("timings_cached"), raw.get("timings_predicted")
            prompt = (raw.get("timings_prompt") or 0) + (cached or 0)
        else:
            # Embeddings have a prompt and no output.
            prompt, cached = raw.get("prompt_tokens"), raw.get("cached_tokens")
            output = 0 if "prompt_tokens" in raw else None
        return Usage(prompt_tokens=_whole(prompt), cached_tokens=_whole(cached), output_tokens=_whole(output))

    def broke_on(self, picked: str) -> tuple[str, ...]:
        """The endpoints that closed the connection on this request; it was sent to `picked` first."""
        if self.attempts <= 1 and "UC" not in self.flags:
            return ()
        failed = {picked} if self.attempts > 1 and self.host != picked else set()
        if self.host and "UC" in self.flags:
            failed.add(self.host)
        return tuple(failed)


# Envoy's response flags: the connection to the engine ended, failed, broke the protocol, was reset, had no host.
ENGINE_FAILED = ("UC", "UF", "UPE", "UR", "UH")
_decoder = msgspec.json.Decoder(LogEntry, strict=False)


def read_entry(line: bytes) -> LogEntry | None:
    """The entry in `line`, or None where it is none of ours (cut off by a crash, say)."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and value >= 0 else None


class LogTail:
    """Follows the access log over its rotations, and remembers on disk how far it came.

    The log outlives the picker, so a restarted one goes on where the last one was: no end is missed or counted twice.
    `rotate` is called once the file has grown past `largest_bytes` and been moved away: Envoy must open it anew.
    """

    def __init__(self, path: Path, *, largest_bytes: int, rotate: Callable[[], None]) -> None:
        self._path = path
        self._largest_bytes = largest_bytes
        self._rotate = rotate
        self._moved = False
        place = path.with_suffix(".place")
        place.touch(mode=0o600, exist_ok=True)
        self._place = place.open("r+b", buffering=0)
        self._file = self._open()
        self._used_bytes = self._file.seek(self._remembered())

    def newest_s(self) -> float | None:
        """When the log was last written to, in seconds since 1970; None when nothing was."""
        stat = self._path.stat()
        return stat.st_mtime if stat.st_size else None

    def read(self) -> Iterator[LogEntry]:
        """The entries written since the last call."""
        if os.fstat(self._file.fileno()).st_size < self._used_bytes:
            # Somebody cut the log. What was in it is lost; what comes now is not.
            self._file.seek(0)
            self._used_bytes = 0
        yield from self._rest()
        if self._moved and self._path.exists():
            # Envoy writes to the new file; what it wrote to the old one meanwhile is the last of it.
            yield from self._rest()
            self._file.close()
            self._file = self._open()
            self._used_bytes = 0
            self._moved = False
            self._remember()
        elif not self._moved and self._used_bytes > self._largest_bytes:
            self._path.rename(self._path.with_suffix(".old"))
            self._moved = True
            self._rotate()

    def _rest(self) -> Iterator[LogEntry]:
        while data := self._file.read(READ_BYTES):
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].splitlines():
                entry = read_entry(line)
                if entry:
                    yield entry
            self._used_bytes += whole
            self._remember()
            if whole < len(data):
                # A line that is still being written is read again as a whole.
                self._file.seek(self._used_bytes)
                if not whole:
                    break

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        self._place.close()

    def _remember(self) -> None:
        inode = os.fstat(self._file.fileno()).st_ino
        with contextlib.suppress(OSError):
            # On a full disk the place is forgotten, and requests are still served.
            os.pwrite(self._place.fileno(), f"{inode:020d} {self._used_bytes:020d}".encode(), 0)

    def _remembered(self) -> int:
        """How far this very file was read; 0 for a file that is new."""
        stat = os.fstat(self._file.fileno())
        try:
            inode, used_bytes = map(int, os.pread(self._place.fileno(), 41, 0).split())
        except ValueError:
            return 0
        return used_bytes if inode == stat.st_ino and used_bytes <= stat.st_size else 0

    def _open(self) -> Any:
        self._path.touch(mode=0o600, exist_ok=True)
        return self._path.open("rb", buffering=0)
