"""The whole of one machine under load: what the daemon does while 50 requests run costs none of them."""

import asyncio
import signal

import httpx
import pytest

from tests.local.laptop import Laptop, simulated
from tests.with_envoy.fire import REQUESTS, STREAMS, burning

FLAGS = ("--step-seconds=0.01", "--max-num-seqs=64")
pytestmark = pytest.mark.timeout(150 + REQUESTS // 4)


async def test_a_daemon_killed_under_load_costs_nothing(machine: Laptop):
    machine.up(simulated("chat", *FLAGS, replicas=3))
    before = {replica["name"] for replica in machine.replicas("chat")}
    async with burning(machine.url) as fire:
        for _ in range(2):
            await fire.more(REQUESTS // 4)
            (old,) = machine.daemons()
            old.send_signal(signal.SIGKILL)
            await asyncio.to_thread(machine.until, lambda gone=old: any(p.pid != gone.pid for p in machine.daemons()))
        await fire.more(REQUESTS // 2)
    assert not fire.not_whole(), fire.not_whole()[:5]
    assert {replica["name"] for replica in machine.replicas("chat", phase="Ready")} == before


async def test_replacing_every_replica_under_load_costs_nothing(machine: Laptop):
    machine.up(simulated("chat", *FLAGS, replicas=2))
    before = {replica["name"] for replica in machine.replicas("chat")}
    async with burning(machine.url) as fire:
        await fire.more(REQUESTS // 4)
        await asyncio.to_thread(machine.up, simulated("chat", *FLAGS, "--output-tokens=9", replicas=2))
        await fire.more(REQUESTS // 2)
        await asyncio.to_thread(machine.up, simulated("chat", *FLAGS, replicas=3))
        await fire.more(REQUESTS // 4)
    assert not fire.not_whole(), fire.not_whole()[:5]
    machine.until(lambda: len(machine.replicas("chat", phase="Ready")) == len(machine.replicas("chat")) == 3)
    assert not before & {replica["name"] for replica in machine.replicas("chat")}


def answers(machine: Laptop) -> bool:
    """Somebody listens again."""
    try:
        return httpx.get(f"{machine.url}/v1/models", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


async def test_every_part_killed_in_turn_under_load_comes_back_without_an_orphan(machine: Laptop):
    machine.up(simulated("chat", *FLAGS, replicas=3))
    async with burning(machine.url) as fire:
        for part in (
            "pilotage.gateway",
            "daemon_process",
            "guardian.py",
            "simulated.server",
            "pilotage.agent",
            "/envoy",
        ):
            await fire.more(REQUESTS // 8)
            victim = (machine.daemons() if part == "daemon_process" else machine.named(part))[0]
            victim.send_signal(signal.SIGKILL)
        await asyncio.to_thread(machine.until, lambda: answers(machine), within_s=90)
        # What was on its way or paused meanwhile comes first.
        last = len(fire.shots) + STREAMS
        await fire.more(STREAMS * 3)
    fates = fire.fates()
    # Two engines and Envoy were killed with what ran on them; while Envoy was gone nobody listened.
    assert set(fates) <= {"whole", "broken", "lost"}, fire.not_whole()[:5]
    assert fates["broken"] <= 3 * STREAMS
    assert all(shot.fate == "whole" for shot in fire.shots[last:]), fire.not_whole()[-3:]
    machine.until(lambda: len(machine.replicas("chat", phase="Ready")) == len(machine.replicas("chat")) == 3)
    assert machine.run("down", timeout_s=90).returncode == 0
    machine.until(lambda: not machine.processes(), within_s=60)
