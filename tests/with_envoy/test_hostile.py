"""What a client may send to harm, through the real Envoy: each is answered with a reason, and the gateway goes on."""

import asyncio
import contextlib
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotage.gateway import GatewayLimits
from tests.with_envoy.fire import Fleet, fleet
from tests.with_envoy.harness import Gateway, Seen, answer_plain, chat, engines, service

REQUESTS = 500
# Every 5xx that the gateway may give, with the reason it says.
REASONS = {"no_capacity", "no_ready_replicas", "scaled_to_zero", "gateway_restarting", "engine_unavailable", "timeout"}
FAST = "--step-seconds=0.002"


@pytest_asyncio.fixture
async def wide() -> AsyncIterator[Gateway]:
    """A gateway with the limits that users get."""
    with tempfile.TemporaryDirectory(prefix="plt-") as folder:
        running = Gateway(Path(folder), limits=GatewayLimits())
        try:
            await running.start()
            yield running
        finally:
            running.stop()


def send(port: int, data: bytes, *, within_s: float = 20) -> bytes:
    """What comes back for these bytes, as far as it comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=within_s) as conn:
        with contextlib.suppress(OSError):
            conn.sendall(data)
        answer = b""
        with contextlib.suppress(OSError):
            # Envoy closes a refused connection only after a while, so that the client has time to read.
            while not _is_whole(answer, data) and (part := conn.recv(65536)):
                answer += part
        return answer


def _is_whole(answer: bytes, request: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    if request.startswith(b"HEAD"):
        return True
    said = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= int(said[0].split(b":")[1]) if said else body.endswith(b"0\r\n\r\n")


def raw(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


methods = st.sampled_from(
    ["GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HEAD", "get", "X-Y"]
)
paths = st.sampled_from(
    ["/v1/chat/completions", "/v1/chat/completions?x=1", "/v1/completions", "/v1/models", "/v1/models/chat", "/v1/embeddings",
     "/", "/metrics", "/simulate/fault", "/slots", "/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/v1/../metrics",
     "/v1/%2e%2e/metrics", "/v1/chat%2fcompletions", "//v1//chat//completions", "/v1/chat/completions/", "/stats", "/quitquitquit"]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60).map(lambda text: "/" + text)  # fmt: skip
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            ["x-pilotage-service", "x-pilotage-arrival", "x-pilotage-lease", "x-pilotage-patch", "x-pilotage-answer",
             "x-gateway-destination-endpoint", "x-envoy-upstream-rq-timeout-ms", "x-envoy-retry-on", "authorization",
             "traceparent", "x-request-id", "content-type", "accept-encoding", "x-forwarded-for", "cookie", "te", "expect",
             "content-encoding", "x_under_score", "upgrade"]
        ),
        header_values,
    ),
    max_size=5,
)  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
# By OpenAI's schema of a chat request, with any field replaced by any value.
chats = st.fixed_dictionaries(
    {"model": st.sampled_from(["chat", "chat", "chat", "other", "", "../x"]) | json_values,
     "messages": st.just([{"role": "user", "content": "hi"}]) | json_values},
    optional=dict.fromkeys(("temperature", "n", "stop", "stream_options", "tools", "response_format", "seed"), json_values)
    | {"stream": st.booleans() | json_values, "max_tokens": st.integers(1, 5) | json_values,
       "max_completion_tokens": st.integers(1, 5) | json_values},
)  # fmt: skip
bodies = (
    chats.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | json_values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=300)
    | st.integers(1, 30_000).map(lambda depth: b'{"model":"chat","messages":' + b"[" * depth + b"]" * depth + b"}")
    | st.sampled_from(
        [b'{"model":"chat","model":"x"}', b'{"model":"chat","messages":[{"content":"\xff\xfe"}]}', b"", b"null"]
    )
)


async def test_random_and_hostile_requests_are_answered_with_a_reason(gateway: Gateway):
    async with fleet(gateway, 2, "--step-seconds=0.001", "--output-tokens=2", "--max-model-len=200"):
        assert gateway.picker
        count = 0

        @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(methods, paths, headers, bodies)
        def hostile(method: str, path: str, more: list[tuple[str, str]], body: bytes) -> None:
            nonlocal count
            count += 1
            answer = send(gateway.port, raw(method, path, more, body))
            assert b"Traceback" not in answer
            assert b'File "' not in answer
            head, _, text = answer.partition(b"\r\n\r\n")
            assert head, "the connection was closed without a word"
            status = int(head.split()[1])
            if status >= 500 and method != "HEAD":
                assert json.loads(text)["error"]["code"] in REASONS | {501}, answer[-500:]

        await asyncio.to_thread(hostile)
        assert count >= REQUESTS
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=chat(max_tokens=2), timeout=60)
        assert answer.status_code == 200
        # The same picker, and nothing that it did not foresee.
        assert gateway.picker.poll() is None
        log = (gateway.files.folder / "picker.log").read_text()
        assert '"exception"' not in log
        assert "Traceback" not in log


async def test_a_client_chooses_neither_endpoint_nor_tenant_nor_arrival(gateway: Gateway, client: httpx.AsyncClient):
    async def see(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await answer_plain(writer, {"ok": True})

    async with engines(see, see) as (known, secret):
        await gateway.use_applied(service(known))
        began_s = time.time()
        smuggled = {
            "x-gateway-destination-endpoint": secret.endpoint, "x-pilotage-service": "default/other",
            "x-pilotage-arrival": "1.0", "x-pilotage-lease": "forged;default/chat;x;0;0;0;0;;0;", "X-Pilotage-Answer": "{}",
            "x-envoy-original-dst-host": secret.endpoint, "x-envoy-upstream-rq-timeout-ms": "1",
        }  # fmt: skip
        answer = await client.post(f"{gateway.url}/v1/chat/completions", json=chat(), headers=smuggled)
        assert answer.json() == {"ok": True}
        assert not secret.seen
        assert not [name for name in known.seen[0].headers if name.startswith(("x-pilotage", "x-gateway", "x-envoy"))]
        entry = await gateway.logged(lambda entry: entry.get("lease") and entry["type"] == "DownstreamEnd")
        lease = entry["lease"].split(";")
        assert lease[1:3] == ["default/chat", known.endpoint]
        assert float(lease[3]) >= began_s - 1


async def test_duplicate_keys_are_read_by_the_picker_as_by_the_engine(gateway: Gateway, client: httpx.AsyncClient):
    async with fleet(gateway, 1, FAST):
        body = (
            b'{"model": "nothing", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "model": "chat"}'
        )
        answer = await client.post(f"{gateway.url}/v1/chat/completions", content=body)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 2


async def test_large_bodies_headers_and_depths(wide: Gateway, client: httpx.AsyncClient):
    async with fleet(wide, 1, FAST, "--cache-tokens=100000000", "--max-num-batched-tokens=10000000"):
        url = f"{wide.url}/v1/chat/completions"
        ten = await client.post(url, json=chat("x" * 10_000_000, max_tokens=1), timeout=60)
        # The engine's own word about its context, from the engine.
        assert ten.status_code == 400
        assert "longer than" in ten.json()["error"]["message"]
        deep = b'{"model":"chat","messages":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"
        answer = await client.post(url, content=deep)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
        over = await client.post(url, content=b"x" * (17 * 1024 * 1024))
        assert (over.status_code, over.json()["error"]["code"]) == (413, "request_too_large")
        assert send(wide.port, raw("POST", "/v1/models", [("x-long", "y" * 100_000)], b"")).startswith(b"HTTP/1.1 431")
        assert (await client.post(url, json=chat(max_tokens=2))).status_code == 200


async def test_slow_clients_hold_nobody_up(gateway: Gateway, client: httpx.AsyncClient):
    async with fleet(gateway, 1, FAST):
        slow = []
        for number in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            # Some stop in their headers, some in their body.
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            if number % 2:
                writer.write(b"content-length: 100\r\n\r\n{")
            slow.append(writer)
        for _ in range(20):
            assert (await client.post(f"{gateway.url}/v1/chat/completions", json=chat(max_tokens=2))).status_code == 200
        status = await gateway.status()
        assert status["waiting"] == {"default/chat": 0}
        # One that dribbles its body is served when it is done.
        body = json.dumps(chat(max_tokens=2)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 10):
            writer.write(body[start : start + 10])
            await asyncio.sleep(0.1)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        for each in [*slow, writer]:
            each.close()


PHASES = ("in its headers", "in its body", "while held", "before the first byte", "in the stream")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_takes_its_work_with_it(gateway: Gateway, phase: str):
    def flags_of(phase: str) -> str:
        # The simulated engine looks up once a step.
        return "--step-seconds=3" if phase == "before the first byte" else "--step-seconds=0.05"

    async with fleet(gateway, 0 if phase == "while held" else 1, flags_of(phase)) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = json.dumps(chat(stream=True, max_tokens=5_000)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        match phase:
            case "in its headers":
                writer.write(head[:40])
            case "in its body":
                writer.write(head + body[:20])
            case _:
                writer.write(head + body)
        if phase == "while held":
            await gateway.until(lambda status: status["waiting"] == {"default/chat": 1})
        elif phase in ("before the first byte", "in the stream"):
            await gateway.until(lambda status: sum(status["in_flight"].values()) == 1)
            await until_running(one, 1)
        if phase == "in the stream":
            await reader.readuntil(b"data: ")
        writer.transport.abort()
        await gateway.until(lambda status: not status["in_flight"] and not any(status["waiting"].values()))
        await until_running(one, 0)


async def until_running(one: Fleet, count: int) -> None:
    """Until the engines say that they work on so many requests."""
    for _ in range(300):
        if sum(engine.running() for engine in one.engines) == count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"the engines do not come to {count} running requests")


async def test_limits_of_a_key_are_exact_and_said_in_openais_headers(gateway: Gateway, client: httpx.AsyncClient):
    from pilotage.gateway import KeyEntry, KeyLimits, hash_of_key

    limits = KeyLimits(concurrent_requests=30, requests_per_minute=40, tokens_per_minute=100_000)
    async with fleet(gateway, 2, FAST, keys=(KeyEntry(hash=hash_of_key("sk-limited"), limits=limits),)):
        url, key = f"{gateway.url}/v1/chat/completions", {"authorization": "Bearer sk-limited"}
        first = await client.post(url, json=chat(max_tokens=5), headers=key)
        assert first.headers["x-ratelimit-limit-requests"] == "40"
        assert first.headers["x-ratelimit-remaining-requests"] == "39"
        assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
        began = time.monotonic()
        answers = await asyncio.gather(
            *(client.post(url, json=chat(str(n), max_tokens=5), headers=key) for n in range(29))
        )
        assert {a.status_code for a in answers} == {200}
        # The picker is killed: what was used stays used.
        gateway.kill_picker()
        gateway.start_picker()
        more = await asyncio.gather(
            *(client.post(url, json=chat(str(n), max_tokens=5), headers=key) for n in range(25))
        )
        served = 30 + sum(a.status_code == 200 for a in more)
        flowed_in = 40 * (time.monotonic() - began) / 60
        assert 40 <= served <= 40 + flowed_in + 1, served
        refused = next(a for a in more if a.status_code != 200)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.json()["error"]["type"] == "requests"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        unlimited = await client.post(url, json=chat(), headers={"authorization": "Bearer nobody"})
        assert unlimited.status_code == 401
