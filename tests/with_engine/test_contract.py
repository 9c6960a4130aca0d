"""What every engine promises to the agent, the gateway and its clients. The real one and the simulated one alike."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilotage.api import EngineType
from pilotage.engines import EngineAdapter, adapter_for
from pilotage.engines.adapter import KEY_VARIABLE
from pilotage.signals import EngineSample, parse_samples
from tests.with_envoy.harness import free_port

KEY = "contract-key"
ARGS = {EngineType.LLAMA_CPP: ["--parallel=2"], EngineType.SIMULATED: ["--max-num-seqs=2", "--step-seconds=0.01"]}


@dataclass
class Running:
    """An engine that has loaded."""

    kind: EngineType
    adapter: EngineAdapter
    url: str
    process: subprocess.Popen[bytes]

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, **more)

    def sample(self) -> EngineSample:
        names = self.adapter.metrics
        with self.client() as client:
            page = client.get("/metrics").text
        return parse_samples(page, running=names.running, waiting=names.waiting, progress=names.progress)

    def until(self, holds: Any, within_s: float = 20) -> EngineSample:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            sample = self.sample()
            if holds(sample):
                return sample
            time.sleep(0.05)
        raise AssertionError(f"not within {within_s} s: {self.sample()}")


@contextlib.contextmanager
def engine(kind: EngineType, model: Path) -> Iterator[Running]:
    adapter, port = adapter_for(kind), free_port()
    launch = adapter.launch(model=model, args=ARGS[kind], port=port, context_tokens=1024, served_name="contract")
    process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env, KEY_VARIABLE: KEY},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    running = Running(kind, adapter, f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(running.url + adapter.health_path).status_code == 200:
                    break
            assert process.poll() is None, "the engine ended"
            assert time.monotonic() < deadline, "the engine did not load"
            time.sleep(0.05)
        yield running
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=list(ARGS))
def running(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[Running]:
    with engine(request.param, smollm2) as found:
        yield found


def chat(**more: Any) -> dict[str, Any]:
    return {
        "model": "any",
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 8,
        "ignore_eos": True,
        **more,
    }


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_it_asks_for_the_key_of_the_run(running: Running):
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert httpx.post(f"{running.url}/v1/chat/completions", json=chat(), headers=headers).status_code == 401


def test_the_warm_up_request_generates(running: Running):
    warm_up = running.adapter.warm_up
    with running.client() as client:
        answer = client.post(warm_up.path, json=dict(warm_up.body))
    assert answer.status_code == 200
    assert answer.json()["choices"]


def test_a_plain_answer_tells_its_usage(running: Running):
    with running.client() as client:
        said = client.post("/v1/chat/completions", json=chat()).json()
    assert said["object"] == "chat.completion"
    assert said["choices"][0]["message"]["role"] == "assistant"
    assert said["usage"]["completion_tokens"] == 8
    assert said["usage"]["prompt_tokens"] > 0


def test_a_stream_with_the_patch_tells_its_usage_as_it_runs(running: Running):
    with running.client() as client:
        response = client.post("/v1/chat/completions", json=chat(stream=True, **running.adapter.stream_patch))
    assert response.headers["content-type"].startswith("text/event-stream")
    counts = []
    for event in events(response):
        if event.get("usage"):
            counts.append(event["usage"]["completion_tokens"])
        elif "timings" in event:
            counts.append(event["timings"]["predicted_n"])
    assert len(counts) >= 8
    assert counts == sorted(counts)
    assert counts[-1] == 8


def test_a_stream_as_the_client_asked_for_has_content_and_an_end(running: Running):
    with running.client() as client:
        asked = chat(stream=True, stream_options={"include_usage": True})
        found = events(client.post("/v1/chat/completions", json=asked))
    assert any(c["delta"].get("content") for e in found for c in e["choices"])
    assert [c["finish_reason"] for e in found for c in e["choices"]][-1] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 8


def test_metrics_tell_what_runs_and_progress_moves_with_work(running: Running):
    before = running.until(lambda s: s.running == 0)
    with (
        running.client() as client,
        client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=200)) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        during = running.until(lambda s: s.running == 1)
        assert during.progress is not None
        moved = running.until(lambda s: s.progress is not None and s.progress > (during.progress or 0))
        assert moved.progress > (before.progress or 0)  # type: ignore[operator]


def test_a_client_that_leaves_ends_its_generation(running: Running):
    with running.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=900)) as response:
            lines = response.iter_lines()
            next(lines)
            running.until(lambda s: s.running == 1)
        running.until(lambda s: s.running == 0, within_s=5)


def test_more_than_its_slots_wait_inside(running: Running):
    import threading

    def ask() -> None:
        with running.client() as client:
            client.post("/v1/chat/completions", json=chat(max_tokens=120))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    sample = running.until(lambda s: s.running == 2 and (s.waiting or 0) >= 1)
    assert sample.running == running.adapter.slots(ARGS[running.kind]) == 2
    for thread in threads:
        thread.join()


def test_bad_requests_are_refused_and_leave_it_well(running: Running):
    with running.client() as client:
        for body in (b"{", b"{}", b'{"messages": 7}'):
            assert 400 <= client.post("/v1/chat/completions", content=body).status_code <= 500
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def test_equal_keys_in_a_body_count_as_the_last_says(running: Running):
    # The gateway's patch rests on this.
    body = json.dumps(chat())[:-1] + ', "max_tokens": 3}'
    with running.client() as client:
        said = client.post("/v1/chat/completions", content=body.encode()).json()
    assert said["usage"]["completion_tokens"] == 3


def test_sigterm_ends_it(smollm2: Path):
    for kind in ARGS:
        with engine(kind, smollm2) as found:
            found.process.terminate()
            assert found.process.wait(timeout=10) in (0, -15)
