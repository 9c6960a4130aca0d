import asyncio
from pathlib import Path

import pytest

from pilotage.operator import EventLog
from pilotage.operator import events as module


def test_the_ledger_outlives_the_process_and_keeps_no_progress(tmp_path: Path):
    log = EventLog(tmp_path / "ledger.jsonl")
    log.record(at_s=1, kind="decision", service="default/a", reason="Start", message="because")
    log.record(at_s=2, kind="progress", service="default/a")
    log.record(at_s=3, kind="decision", service="default/b", reason="Stop")
    again = EventLog(tmp_path / "ledger.jsonl")
    assert [e["reason"] for e in again.decisions("default/a", last=10)] == ["Start"]


def test_a_ledger_that_grows_is_turned_over_and_both_halves_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LARGEST_LEDGER_BYTES", 2_000)
    log = EventLog(tmp_path / "ledger.jsonl")
    for number in range(30):
        log.record(at_s=number, kind="decision", service="s/s", reason=f"r{number}", message="x" * 40)
    found = [e["reason"] for e in log.decisions("s/s", last=12)]
    assert found == [f"r{number}" for number in range(18, 30)]
    assert (tmp_path / "ledger.jsonl").stat().st_size < 2_500


def test_a_ledger_that_cannot_be_written_stops_nothing(tmp_path: Path):
    log = EventLog(tmp_path / "missing" / "ledger.jsonl")
    log.record(at_s=1, kind="decision", service="s/s", reason="Start")
    assert log.last_number == 1


async def test_followers_get_what_was_and_what_comes(tmp_path: Path):
    log = EventLog(tmp_path / "ledger.jsonl")
    log.record(at_s=1, kind="phase", service="s/s", reason="old")
    seen: list[str] = []
    new_only: list[str] = []

    async def follow(after: int, into: list[str]) -> None:
        async for event in log.follow(after):
            into.append(event.reason)

    tasks = [asyncio.create_task(follow(0, seen)), asyncio.create_task(follow(-1, new_only))]
    await asyncio.sleep(0)
    log.record(at_s=2, kind="phase", service="s/s", reason="new")
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert seen == ["old", "new"]
    assert new_only == ["new"]
