"""What happened and why, for those who watch and those who ask later."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

KEPT_EVENTS = 2_000
LARGEST_LEDGER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `kind` is a constant: progress, phase, decision, condition."""

    number: int
    at_s: float
    kind: str
    service: str
    reason: str = ""
    message: str = ""
    replica: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: value for name, value in asdict(self).items() if value not in ("", {}, None)}


class EventLog:
    """The last events in memory, and decisions in a ledger on disk that outlives the process."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._number = 0
        self._news = asyncio.Event()

    def record(self, *, at_s: float, kind: str, service: str, **more: Any) -> Event:
        """Remember an event and wake those who follow."""
        self._number += 1
        event = Event(number=self._number, at_s=at_s, kind=kind, service=service, **more)
        self._events.append(event)
        if kind != "progress":
            self._write(event)
        self._news.set()
        self._news = asyncio.Event()
        return event

    @property
    def last_number(self) -> int:
        """Number of the newest event."""
        return self._number

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Events with a number above `after`, and then new ones as they come; only those where `after` is negative."""
        if after < 0:
            after = self._number
        while True:
            news = self._news
            for event in [event for event in self._events if event.number > after]:
                after = event.number
                yield event
            await news.wait()

    def decisions(self, service: str, *, last: int) -> list[dict[str, Any]]:
        """The last events of `service` that the ledger holds, oldest first."""
        found: deque[dict[str, Any]] = deque(maxlen=last)
        for path in (self._ledger.with_suffix(".old"), self._ledger):
            try:
                lines = path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if event.get("service") == service:
                    found.append(event)
        return list(found)

    def _write(self, event: Event) -> None:
        try:
            if self._ledger.exists() and self._ledger.stat().st_size > LARGEST_LEDGER_BYTES:
                self._ledger.replace(self._ledger.with_suffix(".old"))
            with self._ledger.open("ab") as file:
                file.write(orjson.dumps(event.to_dict()) + b"\n")
        except OSError:
            # A full disk must not stop the loop; the event is still in memory.
            return
