"""Large bodies are read in a process of their own: 10 MB of JSON take 10 ms, which all other requests would wait.

`python -m pilotage.gateway.large_bodies` is that process. It gets bodies on its input and says on its output what they
are; it ends with its input, so that a picker that is killed leaves nothing behind.
"""

import asyncio
import os
import struct
import sys
from collections import deque
from collections.abc import Sequence
from typing import BinaryIO, get_args

import msgspec
import structlog

from pilotage.gateway.requests import Parsed, PromptField, Unreadable, parse

log = structlog.get_logger()

# Below this the reading takes less time than the way to another process.
LARGE_BYTES = 512 * 1024
NICENESS = 15
# Ten megabytes take 10 ms; what takes this long hangs.
DEADLINE_S = 30.0
_FRAME = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")
_FIELDS: tuple[PromptField, ...] = get_args(PromptField)


class LargeBodies:
    """The process, started when it is first needed and again when it has died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._asked: deque[asyncio.Future[Parsed | Unreadable]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def parse(self, parts: Sequence[bytes], field: PromptField) -> Parsed | Unreadable:
        """As `requests.parse` of the parts together; here, when the process fails twice."""
        for _ in range(2):
            try:
                process = await self._running()
                assert process.stdin
                answer: asyncio.Future[Parsed | Unreadable] = asyncio.get_running_loop().create_future()
                self._asked.append(answer)
                process.stdin.write(_FRAME.pack(_FIELDS.index(field), sum(map(len, parts))))
                process.stdin.writelines(parts)
                return await asyncio.wait_for(answer, timeout=DEADLINE_S)
            except (OSError, EOFError, TimeoutError) as error:
                log.warning("large_body_reader_failed", error=f"{type(error).__name__}: {error}")
                if isinstance(error, TimeoutError) and self._process and self._process.returncode is None:
                    self._process.kill()
        return parse(b"".join(parts), field)

    async def start(self) -> None:
        """Start the process now, so that the first large body need not wait for it."""
        await self._running()

    async def stop(self) -> None:
        """End the process."""
        if self._reader:
            self._reader.cancel()
        if self._process:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None or not self._reader or self._reader.done():
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
                )
                assert self._process.stdout
                self._asked = deque()
                self._reader = asyncio.create_task(self._read(self._process.stdout, self._asked))
            return self._process

    @staticmethod
    async def _read(output: asyncio.StreamReader, asked: deque[asyncio.Future[Parsed | Unreadable]]) -> None:
        decoder = msgspec.msgpack.Decoder(Parsed | Unreadable)
        try:
            while True:
                (length,) = _LENGTH.unpack(await output.readexactly(_LENGTH.size))
                said = decoder.decode(await output.readexactly(length))
                answer = asked.popleft()
                if not answer.done():
                    answer.set_result(said)
        except (EOFError, OSError, msgspec.MsgspecError) as error:
            for answer in asked:
                if not answer.done():
                    answer.set_exception(EOFError(f"the process that reads large bodies ended: {error}"))


def serve(bodies: BinaryIO, output: BinaryIO) -> None:
    """Read bodies and answer each, to the end of the input."""
    encode = msgspec.msgpack.Encoder().encode
    while len(head := bodies.read(_FRAME.size)) == _FRAME.size:
        field, length = _FRAME.unpack(head)
        body = bodies.read(length)
        try:
            said = encode(parse(body, _FIELDS[field]))
        except Exception:
            # A body that this code did not foresee must not take the others with it.
            log.exception("large_body_unread")
            said = encode(Unreadable("invalid_json", "The body can't be read."))
        output.write(_LENGTH.pack(len(said)) + said)
        output.flush()


if __name__ == "__main__":
    # Who waits for a large body waits for its upload anyway; Envoy and the picker go first.
    os.nice(NICENESS)
    serve(sys.stdin.buffer, sys.stdout.buffer)
