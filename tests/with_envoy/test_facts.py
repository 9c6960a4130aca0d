"""What the design rests on, as seen of the real Envoy. A new version of Envoy must pass these first."""

import asyncio
import json

import httpx
import pytest

from pilotage.gateway import KeyEntry, hash_of_key
from tests.with_envoy.harness import (
    Gateway,
    Seen,
    begin_stream,
    chat,
    end_stream,
    engines,
    quick,
    send_event,
    service,
    with_slots,
)


async def test_a_request_reaches_the_engine_with_its_key_and_without_what_the_client_smuggled(
    gateway: Gateway, client: httpx.AsyncClient
):
    async with engines(quick) as (engine,):
        await gateway.use_applied(service(engine))
        response = await client.post(
            f"{gateway.url}/v1/chat/completions",
            json=chat(),
            headers={
                "authorization": "Bearer of-the-client",
                "x-gateway-destination-endpoint": "127.0.0.1:1",
                "x-pilotage-service": "other/service",
                "x-pilotage-arrival": "1",
                "x-envoy-upstream-rq-timeout-ms": "1",
                "x-request-id": "mine",
            },
        )
        assert response.status_code == 200, response.text
        assert response.headers["x-request-id"] == "mine"
        headers = engine.seen[0].headers
        assert headers["authorization"] == "Bearer engine-key"
        assert headers["x-request-id"] == "mine"
        assert headers["traceparent"] == response.headers["traceparent"]
        assert not [name for name in headers if name.startswith(("x-pilotage", "x-gateway", "x-envoy"))]


async def test_a_denial_carries_its_status_body_and_headers(gateway: Gateway, client: httpx.AsyncClient):
    async with engines(quick) as (engine,):
        await gateway.use_applied(service(engine, keys=(KeyEntry(hash=hash_of_key("right")),)))
        url = f"{gateway.url}/v1/chat/completions"
        wrong = await client.post(url, json=chat(), headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        assert wrong.headers["www-authenticate"] == 'Bearer realm="pilotage"'
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        right = await client.post(url, json=chat(), headers={"authorization": "Bearer right"})
        assert right.status_code == 200
        assert len(engine.seen) == 1


async def test_a_503_reaches_the_client_with_its_reason(gateway: Gateway, client: httpx.AsyncClient):
    await gateway.use_applied(service(max_wait_s=0.2, wanted_replicas=1))
    response = await client.post(f"{gateway.url}/v1/chat/completions", json=chat())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_ready_replicas"
    assert response.headers["retry-after"] == "30"


async def test_a_body_patch_reaches_the_engine(gateway: Gateway, client: httpx.AsyncClient):
    async with engines(quick) as (engine,):
        patch = {"stream_options": {"include_usage": True}}
        await gateway.use_applied(service(engine, stream_patch=patch, engine_model="real"))
        url = f"{gateway.url}/v1/chat/completions"
        sent = json.dumps(chat("h\u00e9 }", stream=True, stream_options={"include_usage": False}), indent=2) + "\n "
        assert (await client.post(url, content=sent.encode())).status_code == 200
        assert (await client.post(url, json=chat("plain"))).status_code == 200
        streamed, plain = (json.loads(seen.body) for seen in engine.seen)
        assert streamed["stream_options"] == {"include_usage": True}
        assert streamed["model"] == plain["model"] == "real"
        assert streamed["messages"][0]["content"] == "h\u00e9 }"
        assert "stream_options" not in plain


async def test_usage_of_a_streamed_answer_is_known_also_when_the_client_leaves(
    gateway: Gateway, client: httpx.AsyncClient
):
    async def counting(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        for number in range(1, 1000):
            timings = {"cache_n": 2, "prompt_n": 5, "predicted_n": number}
            await send_event(writer, {"choices": [{"delta": {"content": "x"}}], "timings": timings})
            if b"short" in seen.body and number == 4:
                await send_event(writer, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
                await send_event(writer, "[DONE]")
                await end_stream(writer)
                return
            await asyncio.sleep(0.01)

    async with engines(counting) as (engine,):
        await gateway.use_applied(service(engine))
        url = f"{gateway.url}/v1/chat/completions"
        whole = await client.post(url, json=chat("short", stream=True))
        assert whole.text.endswith("data: [DONE]\n\n")
        ended = await gateway.logged(lambda e: e["type"] == "DownstreamEnd" and "lease" in e)
        assert ended["usage"]["completion_tokens"] == 4
        async with client.stream("POST", url, json=chat("long", stream=True)) as response:
            chunks = 0
            async for line in response.aiter_lines():
                chunks += line.startswith("data")
                if chunks == 20:
                    break
        await asyncio.wait_for(engine.seen[1].client_left.wait(), 5)
        cut = await gateway.logged(lambda e: e["type"] == "DownstreamEnd" and "DC" in e.get("flags", ""))
        assert 20 <= cut["usage"]["timings_predicted"] < 900
        metrics = await gateway.metrics()
        assert 'code="200",reason="client_left",service="default/chat"} 1.0' in metrics


async def test_usage_of_a_plain_answer_is_known(gateway: Gateway, client: httpx.AsyncClient):
    async with engines(quick) as (engine,):
        await gateway.use_applied(service(engine))
        await client.post(f"{gateway.url}/v1/chat/completions", json=chat())
        await gateway.logged(
            lambda e: e["type"] == "DownstreamEnd" and e.get("usage", {}).get("completion_tokens") == 3
        )
        await gateway.until(lambda status: not status["in_flight"])
        assert 'pilotage_output_tokens_total{service="default/chat"} 3.0' in await gateway.metrics()


async def test_a_running_stream_logs_its_host_and_usage_while_it_runs(gateway: Gateway, client: httpx.AsyncClient):
    go_on = asyncio.Event()

    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        await send_event(writer, {"usage": {"prompt_tokens": 3, "completion_tokens": 1}})
        await go_on.wait()
        await end_stream(writer)

    async with engines(slow) as (engine,):
        await gateway.use_applied(service(engine))
        url = f"{gateway.url}/v1/chat/completions"
        task = asyncio.create_task(client.post(url, json=chat(stream=True)))
        entry = await gateway.logged(lambda e: e["type"] == "DownstreamPeriodic" and "usage" in e)
        assert entry["host"] == engine.endpoint
        assert entry["usage"]["completion_tokens"] == 1
        go_on.set()
        assert (await task).status_code == 200


async def test_held_requests_outlive_a_killed_picker_in_their_order(gateway: Gateway):
    released = asyncio.Event()

    async def until_released(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        await quick(seen, writer)

    async with (
        engines(until_released) as (engine,),
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as many,
    ):
        entry = with_slots(service(engine), 1)
        await gateway.use_applied(entry)
        url = f"{gateway.url}/v1/chat/completions"
        requests = []
        for number in range(100):
            requests.append(asyncio.create_task(many.post(url, json=chat(f"number {number:03}"))))
            await asyncio.sleep(0.005)
        await gateway.until(lambda status: status["waiting"] == {"default/chat": 99})
        gateway.kill_picker()
        gateway.start_picker()
        await gateway.until(lambda status: status["waiting"] == {"default/chat": 99})
        # What ran before the crash still counts: its slot is not given twice.
        assert (await gateway.status())["in_flight"] == {engine.endpoint: 1}
        assert len(engine.seen) == 1
        released.set()
        answers = await asyncio.gather(*requests)
        assert {answer.status_code for answer in answers} == {200}
        order = [json.loads(seen.body)["messages"][0]["content"] for seen in engine.seen]
        assert order == sorted(order)


async def test_more_holds_than_envoys_default_circuit_breakers_allow_are_all_served(gateway: Gateway):
    # Envoy's defaults would queue past 1,024 and refuse; 300 held at a limit of 400 proves ours count, not Envoy's.
    async with (
        engines(quick) as (engine,),
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as many,
    ):
        await gateway.use_applied(service(wanted_replicas=1))
        url = f"{gateway.url}/v1/chat/completions"
        requests = [asyncio.create_task(many.post(url, json=chat(str(n)))) for n in range(300)]
        await gateway.until(lambda status: status["waiting"] == {"default/chat": 300})
        await gateway.use_applied(service(engine))
        answers = await asyncio.gather(*requests)
        assert {answer.status_code for answer in answers} == {200}


async def test_a_client_that_leaves_while_held_frees_its_place_at_once(gateway: Gateway, client: httpx.AsyncClient):
    await gateway.use_applied(service(wanted_replicas=1))
    request = asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=chat()))
    await gateway.until(lambda status: status["waiting"] == {"default/chat": 1})
    request.cancel()
    await gateway.until(lambda status: status["waiting"] == {"default/chat": 0}, within_s=3)


async def test_no_timeout_ends_a_hold_or_a_silent_answer_but_the_services_own(
    gateway: Gateway, client: httpx.AsyncClient
):
    async def silent(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0 if b"quick" in seen.body else 60)
        await quick(seen, writer)

    async with engines(silent) as (engine,):
        await gateway.use_applied(service(engine, first_byte_timeout_s=1.0))
        url = f"{gateway.url}/v1/chat/completions"
        late = await client.post(url, json=chat("slow"))
        assert late.status_code == 504, late.text
        assert late.json()["error"]["code"] == "timeout"
        # A hold longer than that same limit is no silence of the engine.
        await gateway.use_applied(service(first_byte_timeout_s=1.0, wanted_replicas=1))
        held = asyncio.create_task(client.post(url, json=chat("quick")))
        await asyncio.sleep(1.8)
        assert not held.done()
        await gateway.use_applied(service(engine, first_byte_timeout_s=1.0))
        assert (await held).status_code == 200


async def test_changes_of_routes_and_endpoints_cut_no_running_stream(gateway: Gateway, client: httpx.AsyncClient):
    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await begin_stream(writer)
        for number in range(60):
            await send_event(writer, {"n": number})
            await asyncio.sleep(0.05)
        await send_event(writer, "[DONE]")
        await end_stream(writer)

    async with engines(slow, quick) as (first, second):
        await gateway.use_applied(service(first))
        url = f"{gateway.url}/v1/chat/completions"
        streams = [asyncio.create_task(client.post(url, json=chat(stream=True))) for _ in range(5)]
        await gateway.until(lambda status: status["in_flight"] == {first.endpoint: 5})
        for turn in range(10):
            other = service(second, key=f"default/other{turn}", names=(f"other{turn}",))
            both = service(first, second) if turn % 2 else service(first)
            await gateway.use_applied(both, other)
        for stream in streams:
            assert (await stream).text.endswith("data: [DONE]\n\n")


async def test_an_endpoint_that_envoy_does_not_know_is_refused_and_goes_nowhere_else(
    gateway: Gateway, client: httpx.AsyncClient
):
    async with engines(quick, quick) as (known, stale):
        entry = service(known)
        await gateway.use_applied(entry)
        # A picker that believes in an endpoint that Envoy has lost: its table is changed behind Envoy's back.
        believed = service(stale)
        table = json.loads(gateway.files.table.read_bytes())
        table["generation"] += 1
        table["services"][0]["replicas"] = [r.model_dump() for r in believed.replicas]
        gateway.files.table.write_bytes(json.dumps(table).encode())
        await gateway.until(lambda status: status["generation"] == table["generation"])
        assert (await gateway.status())["usable"] == {"default/chat": []}
        request = asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=chat()))
        await gateway.until(lambda status: status["waiting"] == {"default/chat": 1})
        assert not known.seen
        assert not stale.seen
        request.cancel()


async def test_envoy_sends_a_stale_pick_nowhere(gateway: Gateway, client: httpx.AsyncClient):
    """A picker that lies: what keeps a pick from going elsewhere is Envoy's policy, not our care."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-pilotage-service: default/chat\r\n"
            b"x-gateway-destination-endpoint: 127.0.0.1:1\r\n\r\n"
        )

    async with engines(quick, quick) as (one, two):
        await gateway.use_applied(service(one, two))
        gateway.kill_picker()
        gateway.files.picker_socket.unlink()
        server = await asyncio.start_unix_server(lie, str(gateway.files.picker_socket))
        answer = await client.post(f"{gateway.url}/v1/chat/completions", json=chat())
        server.close()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert one.seen == two.seen == []


async def test_a_dead_first_endpoint_is_retried_once_on_the_second(gateway: Gateway, client: httpx.AsyncClient):
    async with engines(quick, quick) as (dead, alive):
        await gateway.use_applied(service(dead, alive))
        dead.crash()
        url = f"{gateway.url}/v1/chat/completions"
        answers = [await client.post(url, json=chat(str(n))) for n in range(8)]
        assert {answer.status_code for answer in answers} == {200}
        assert len(alive.seen) == 8


async def test_a_reset_before_headers_is_retried_elsewhere_and_one_after_headers_never(
    gateway: Gateway, client: httpx.AsyncClient
):
    async def dies_unanswered(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if b"stream" in seen.body:
            await begin_stream(writer)
            await send_event(writer, {"n": 1})
        writer.transport.abort()

    async with engines(dies_unanswered, quick) as (dying, alive):
        await gateway.use_applied(service(dying, alive))
        url = f"{gateway.url}/v1/chat/completions"
        answers = [await client.post(url, json=chat(str(n))) for n in range(6)]
        assert {answer.status_code for answer in answers} == {200}
        assert dying.seen
        await gateway.use_applied(service(dying))
        seen_before = len(dying.seen)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(url, json=chat(stream=True))
        assert len(dying.seen) == seen_before + 1


async def test_a_body_that_is_too_large_is_answered_413_in_openais_shape(gateway: Gateway, client: httpx.AsyncClient):
    async with engines(quick) as (engine,):
        await gateway.use_applied(service(engine))
        response = await client.post(f"{gateway.url}/v1/chat/completions", json=chat("x" * 2_100_000))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        fits = await client.post(f"{gateway.url}/v1/chat/completions", json=chat("x" * 1_900_000))
        assert fits.status_code == 200
        assert len(engine.seen[0].body) > 1_900_000


async def test_an_unreachable_picker_is_a_503_that_says_so(gateway: Gateway, client: httpx.AsyncClient):
    gateway.kill_picker()
    response = await client.get(f"{gateway.url}/v1/models", timeout=120)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "gateway_restarting"
