"""Real Envoy, real picker, simulated engines, and what may happen to each of them while 50 requests run at once.

Each fault lasts for REQUESTS requests: 1,000 here, 10,000 by `make soak`.
"""

import asyncio
import contextlib
import json
import os
import signal

import httpx
import pytest

from tests.with_envoy.fire import REQUESTS, STREAMS, Fire, burning, fleet, memory_bytes, shoot
from tests.with_envoy.harness import Gateway, chat

FAST = "--step-seconds=0.01"
# A fault may last for as long as a thousand requests take on a busy machine.
pytestmark = pytest.mark.timeout(120 + REQUESTS // 4)


async def settled(gateway: Gateway) -> None:
    """No slot is lost: once nothing runs, nothing is counted as running or waiting."""
    await gateway.until(lambda status: not status["in_flight"] and not any(status["waiting"].values()), within_s=30)


def never_short(fire: Fire) -> None:
    assert not [shot for shot in fire.shots if shot.fate == "short"]


async def test_engines_killed_under_load_cost_their_own_streams_only(gateway: Gateway):
    kills = 3
    async with fleet(gateway, 3, FAST) as engines:
        in_flight, dead = 0, []
        async with burning(gateway.url) as fire:
            for _ in range(kills):
                await fire.more(REQUESTS // (kills + 1))
                victim = engines.engines[0]
                in_flight += (await gateway.status())["in_flight"].get(victim.endpoint, 0) + STREAMS // 3
                victim.kill()
                dead.append(victim.endpoint)
                await engines.replace(victim)
            await fire.more(REQUESTS // (kills + 1))
        fates = fire.fates()
        # What had not begun was sent once more and succeeded; what had begun ended as a protocol error.
        assert set(fates) <= {"whole", "broken"}, fire.not_whole()[:5]
        assert fates["broken"] <= in_flight
        failed = [e for e in gateway.access_log() if e["type"] == "DownstreamEnd" and "UC" in e.get("flags", "")]
        assert {entry["host"] for entry in failed} <= set(dead)
        await settled(gateway)


async def test_a_picker_killed_under_load_costs_nothing(gateway: Gateway):
    # Fewer slots than streams, so that some are always held.
    async with fleet(gateway, 2, FAST, slots=16) as engines:
        async with burning(gateway.url) as fire:
            for _ in range(3):
                await fire.more(REQUESTS // 4)
                gateway.kill_picker()
                gateway.start_picker()
            await fire.more(REQUESTS // 4)
        assert not fire.not_whole(), fire.not_whole()[:5]
        # No slot was ever given twice: the engines never had to queue by themselves.
        assert engines.in_flight() == {}
        await settled(gateway)


async def test_a_restarted_picker_counts_as_the_engines_do_within_two_seconds(gateway: Gateway):
    async with (
        fleet(gateway, 3, "--step-seconds=0.05", slots=8) as engines,
        httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client,
    ):
        long = [
            asyncio.create_task(shoot(client, gateway.url, chat(str(n), stream=True, max_tokens=400)))
            for n in range(20)
        ]
        await gateway.until(lambda status: sum(status["in_flight"].values()) == 20)
        gateway.kill_picker()
        gateway.start_picker()
        status = await gateway.until(lambda _: True)
        began = asyncio.get_running_loop().time()
        while status["in_flight"] != engines.in_flight():
            assert asyncio.get_running_loop().time() - began < 10, (status["in_flight"], engines.in_flight())
            await asyncio.sleep(0.05)
            status = await gateway.status()
        assert sum(status["in_flight"].values()) == 20
        assert {(await task).fate for task in long} == {"whole"}
        await settled(gateway)


async def test_a_killed_envoy_costs_what_was_in_flight_and_no_slot(gateway: Gateway):
    async with fleet(gateway, 2, FAST) as engines:
        async with burning(gateway.url) as fire:
            await fire.more(REQUESTS // 2)
            assert gateway.envoy
            gateway.envoy.kill()
            gateway.envoy.wait()
            gateway.start_envoy()
            await gateway.until_ready()
            after = len(fire.shots)
            await fire.more(REQUESTS // 2)
        # In flight, or refused a connection while nobody listened; how long that is depends on the machine.
        assert fire.fates()["broken"] <= STREAMS
        assert {shot.fate for shot in fire.not_whole()} <= {"broken", "lost"}, fire.not_whole()[:5]
        assert all(shot.fate == "whole" for shot in fire.shots[after + STREAMS :]), fire.not_whole()[-5:]
        await settled(gateway)
        assert engines.in_flight() == {}


async def test_twenty_changes_of_routes_and_endpoints_under_load_cost_nothing(gateway: Gateway):
    changes = 20
    async with fleet(gateway, 3, FAST) as engines:
        async with burning(gateway.url) as fire:
            for turn in range(changes):
                await fire.more(REQUESTS // changes)
                out = [engines.engines[turn % 3]] if turn % 2 else []
                other = engines.entry(key=f"default/other{turn}", names=(f"other{turn}",))
                changed = engines.entry(draining=out, first_byte_timeout_s=600.0 + turn)
                await gateway.use_applied(changed, *([other] if turn % 3 else []))
        assert not fire.not_whole(), fire.not_whole()[:5]
        await settled(gateway)


async def test_a_request_that_ends_engines_is_stopped_and_others_go_on(gateway: Gateway):
    async with fleet(gateway, 4, FAST, "--crash-on=poison-pill") as engines, httpx.AsyncClient(timeout=60) as client:
        url = f"{gateway.url}/v1/chat/completions"
        answers = []
        ended = 0
        for _ in range(6):
            answer = await client.post(url, json=chat("a poison-pill in a prompt"))
            answers.append((answer.status_code, answer.json()["error"]["code"]))
            for dead in [e for e in engines.engines if e.process.poll() is not None]:
                ended += 1
                await engines.replace(dead)
            if answers[-1][1] == "request_quarantined":
                break
        assert answers[-1] == (400, "request_quarantined"), answers
        assert ended == 2
        assert "2 replicas" in answer.json()["error"]["message"]
        assert (await client.post(url, json=chat("a harmless one"))).status_code == 200
        assert (await client.post(url, json=chat("a poison-pill in a prompt"))).status_code == 400


async def test_lost_log_entries_leave_no_replica_full(gateway: Gateway):
    async with fleet(gateway, 1, "--step-seconds=0.02", slots=8), httpx.AsyncClient(timeout=60) as client:
        assert gateway.picker
        many = [
            asyncio.create_task(shoot(client, gateway.url, chat(str(n), stream=True, max_tokens=50))) for n in range(8)
        ]
        await gateway.until(lambda status: sum(status["in_flight"].values()) == 8)
        # Their ends are written while the picker sleeps, and cut away before it looks.
        gateway.picker.send_signal(signal.SIGSTOP)
        assert {(await task).fate for task in many} == {"whole"}
        await asyncio.sleep(0.2)
        os.truncate(gateway.files.access_log, 0)
        gateway.picker.send_signal(signal.SIGCONT)
        assert (await shoot(client, gateway.url, chat("after", stream=True))).fate == "whole"
        await settled(gateway)
        # And it reads on in the log that was cut.
        metrics = await gateway.metrics()
        assert 'pilotage_requests_total{code="200",reason="ok",service="default/chat"}' in metrics


async def test_two_thousand_slow_streams(gateway: Gateway):
    count, tokens = 2_000, 100
    whole = 0
    async with fleet(gateway, 4, "--step-seconds=0.05", "--cache-tokens=10000000", slots=600):

        async def stream(number: int) -> None:
            """By hand: two thousand of a client library's streams would be the slowest part."""
            nonlocal whole
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            body = json.dumps(chat(str(number), stream=True, max_tokens=tokens)).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            last = b""
            while data := await reader.read(65536):
                last = (last + data)[-64:]
                if last.endswith(b"0\r\n\r\n"):
                    whole += b"data: [DONE]\n\n" in last
                    break
            writer.close()

        tasks = [asyncio.create_task(stream(number)) for number in range(count)]
        assert gateway.picker
        await gateway.until(lambda status: sum(status["in_flight"].values()) > count * 0.9, within_s=90)
        before = memory_bytes(gateway.picker.pid)
        await asyncio.gather(*tasks)
        assert whole == count
        # What the picker holds of a stream is its lease; nothing of it grows with the chunks.
        assert memory_bytes(gateway.picker.pid) - before < 24_000_000
        await settled(gateway)


async def test_two_thousand_large_requests_are_held_within_bounds_and_the_excess_is_refused(gateway: Gateway):
    """The limit is 16 MB here (LIMITS): 15 bodies of 1 MB are held, the others are refused, and Envoy stays bounded."""
    count, size = 2_000, 1_000_000
    body = json.dumps(chat("x" * size)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    statuses: list[bytes] = []
    # As many at once as a crowd of clients would have on their way.
    at_once = asyncio.Semaphore(200)
    async with fleet(gateway, 0):

        async def ask() -> None:
            async with at_once:
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                writer.write(head + body)
                with contextlib.suppress(ConnectionError):
                    waiting = asyncio.create_task(reader.readuntil(b"\r\n"))
                    done, _ = await asyncio.wait({waiting}, timeout=20)
                    held.append(writer) if not done else statuses.append(waiting.result().split()[1])
                    if done:
                        writer.close()
                    else:
                        waiting.cancel()

        held: list[asyncio.StreamWriter] = []
        assert gateway.envoy
        assert gateway.picker
        asked = [asyncio.create_task(ask()) for _ in range(count)]
        largest = 0
        while not all(task.done() for task in asked):
            largest = max(largest, memory_bytes(gateway.envoy.pid))
            await asyncio.sleep(0.2)
        await asyncio.gather(*asked)
        assert set(statuses) == {b"429"}, set(statuses)
        status = await gateway.status()
        assert status["waiting"] == {"default/chat": 15}
        assert len(held) == 15
        # Each body that is on its way or held is three times in Envoy; 200 come at once, 16 MB are held.
        assert largest < 1_000_000_000, f"{largest / 1e6:.0f} MB"
        assert memory_bytes(gateway.picker.pid) < 400_000_000
        for writer in held:
            writer.close()
        await gateway.until(lambda status: not any(status["waiting"].values()))


async def test_the_openai_client_raises_when_an_engine_dies_in_a_stream(gateway: Gateway):
    import openai

    async with fleet(gateway, 1, "--step-seconds=0.05") as engines:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Go on."}]
        stream = await client.chat.completions.create(model="chat", messages=messages, max_tokens=400, stream=True)  # type: ignore[call-overload]
        seen = 0
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            async for _ in stream:
                seen += 1
                if seen == 3:
                    engines.engines[0].kill()
        assert seen >= 3


async def test_a_plain_answer_may_take_its_time(gateway: Gateway):
    """Ten minutes at a hundredth: silent for six seconds, where the limit of an hour is 36."""
    async with (
        fleet(gateway, 1, "--step-seconds=0.06", first_byte_timeout_s=36.0),
        httpx.AsyncClient(timeout=60) as client,
    ):
        answer = await client.post(f"{gateway.url}/v1/chat/completions", json=chat(max_tokens=100))
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 100
