"""The HTTP that Envoy speaks with the picker: one check a request, over a Unix socket.

httptools on uvloop answers a check in 12 microseconds of CPU; aiohttp's server took five times that.
"""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import cast

import httptools
import msgspec
import structlog

from pilotage.clock import Clock
from pilotage.gateway.answers import Answer
from pilotage.gateway.envoy import ANSWER, ANSWER_RETRY, ANSWER_STATUS, ARRIVAL, ENDPOINTS, LEASE, PATCH, SERVICE
from pilotage.gateway.large_bodies import LARGE_BYTES, LargeBodies
from pilotage.gateway.picker import Forward, Picker, Request, Verdict, Waiter
from pilotage.gateway.requests import PromptField

log = structlog.get_logger()

PATH_PREFIX = "/check"
ARRIVAL_HEADER = ARRIVAL.encode()


class CheckProtocol(asyncio.Protocol):
    """One connection from Envoy; it sends the next check after the answer to the last."""

    __slots__ = ("_body", "_clock", "_headers", "_large", "_parser", "_picker", "_reading", "_transport", "_url",
                 "_waiter")  # fmt: skip

    def __init__(self, picker: Picker, clock: Clock, large: LargeBodies) -> None:
        self._picker = picker
        self._clock = clock
        self._large = large
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: Waiter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reading:
            self._reading.cancel()
        if self._waiter:
            self._picker.leave(self._waiter)
            self._waiter = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # Envoy asks again on another connection; what went wrong must not go unseen.
            log.exception("check_failed")
            if self._transport:
                self._transport.close()

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Envoy writes names in lower case.
        self._headers[name] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        parts, self._body = self._body, []
        size = sum(map(len, parts))
        is_large = size >= LARGE_BYTES
        # Ten megabytes are not even put together here.
        body = b"" if is_large else parts[0] if len(parts) == 1 else b"".join(parts)
        headers = self._headers
        request = Request(
            self._parser.get_method().decode("ascii"),
            self._url[len(PATH_PREFIX) :].decode("latin-1"),
            _bearer(headers.get(b"authorization")),
            body,
            self._arrival_s(),
            _text(headers.get(b"traceparent")),
        )
        if is_large:
            field = self._picker.prompt_field(request.method, request.path)
            if field:
                self._reading = asyncio.get_running_loop().create_task(self._read_large(request, parts, size, field))
                return
        self._waiter = self._picker.decide(request, self._reply)

    async def _read_large(self, request: Request, parts: list[bytes], size: int, field: PromptField) -> None:
        try:
            parsed = await self._large.parse(parts, field)
            self._reading = None
            read = msgspec.structs.replace(request, parsed=parsed, large_bytes=size)
            self._waiter = self._picker.decide(read, self._reply)
        except Exception:
            # As with a small one: Envoy asks again on another connection.
            log.exception("check_failed")
            if self._transport:
                self._transport.close()

    def _reply(self, verdict: Verdict) -> None:
        self._waiter = None
        if self._transport:
            self._transport.write(_answer(verdict) if isinstance(verdict, Answer) else _forward(verdict))

    def _arrival_s(self) -> float:
        # Envoy's stamp outlives a restart of the picker, so that the order and the deadline of a held request do too.
        try:
            return float(self._headers[ARRIVAL_HEADER])
        except (KeyError, ValueError):
            return self._clock.wall_s()


def protocol_factory(picker: Picker, clock: Clock, large: LargeBodies) -> Callable[[], CheckProtocol]:
    """What `loop.create_unix_server` wants."""
    return lambda: CheckProtocol(picker, clock, large)


def _bearer(value: bytes | None) -> str | None:
    if value is None:
        return None
    scheme, _, key = value.partition(b" ")
    return key.strip().decode("latin-1") if scheme.lower() == b"bearer" and key.strip() else None


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None


def _forward(forward: Forward) -> bytes:
    lease = forward.lease
    said = (
        f"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{SERVICE}: {lease.service}\r\n"
        f"{ENDPOINTS}: {','.join(forward.endpoints)}\r\n{LEASE}: {lease.to_text()}\r\n"
        f"traceparent: {forward.traceparent}\r\nauthorization: Bearer {forward.engine_key}\r\n"
    )
    if forward.patch:
        said += f"{PATCH}: {forward.patch}\r\n"
    return (said + _lines(forward.headers) + "\r\n").encode("latin-1")


def _lines(headers: Iterable[tuple[str, str]]) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def _answer(answer: Answer) -> bytes:
    """A denial where Envoy can carry it (4xx); else words for the Lua filter, which then answers."""
    retry = str(answer.retry_after_s) if answer.retry_after_s is not None else None
    if 400 <= answer.status < 500:
        headers = [("content-length", str(len(answer.body))), ("content-type", "application/json"), *answer.headers]
        if retry:
            headers.append(("retry-after", retry))
        if answer.status == 401:
            headers.append(("www-authenticate", 'Bearer realm="pilotage"'))
        status = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        return f"{status}{_lines(headers)}\r\n".encode("ascii") + answer.body
    headers = [("content-length", "0"), (ANSWER_STATUS, str(answer.status))]
    if retry:
        headers.append((ANSWER_RETRY, retry))
    return f"HTTP/1.1 200 OK\r\n{_lines(headers)}{ANSWER}: ".encode("ascii") + answer.body + b"\r\n\r\n"
