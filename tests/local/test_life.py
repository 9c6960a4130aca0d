"""The life of services on one machine, with the real daemon, gateway, agents and simulated engines."""

import asyncio
import json
import signal
import socket
import time

import httpx
import psutil
import pytest

from tests.local.laptop import Laptop, laptop, simulated
from tests.local.load import Outcome, ask, load

FAST = ("--step-seconds=0.01",)


def test_up_serves_and_down_leaves_nothing_behind(machine: Laptop):
    done = machine.up(simulated("sim", *FAST))
    assert machine.url in done.stdout
    assert len(machine.replicas(phase="Ready")) == 2
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    answer = httpx.post(f"{machine.url}/v1/chat/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert machine.run("status", "sim").returncode == 0
    assert "replicas are wanted" in machine.run("explain", "sim").stdout
    down = machine.run("down")
    assert down.returncode == 0, down.stderr
    assert machine.services() == []
    machine.until(lambda: not machine.processes(), within_s=60)
    assert not list((machine.home / "state" / "replicas").iterdir())


async def test_a_changed_file_replaces_every_replica_and_no_request_is_lost(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    before = {r["name"] for r in machine.replicas()}
    async with load(machine.url, streams=12) as outcome:
        await outcome.more(12)
        await asyncio.to_thread(machine.up, simulated("sim", *FAST, "--output-tokens=7"))
        await outcome.more(12)
    after = {r["name"] for r in machine.replicas(phase="Ready")}
    assert len(after) == 2
    assert not before & after
    assert outcome.wrong == []


async def test_a_killed_daemon_is_restarted_and_takes_up_what_runs(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    before = {r["name"] for r in machine.replicas()}
    (old,) = machine.daemons()
    async with load(machine.url, streams=8) as outcome:
        await outcome.more(8)
        old.send_signal(signal.SIGKILL)
        await asyncio.to_thread(machine.until, lambda: any(p.pid != old.pid for p in machine.daemons()), within_s=60)
        await outcome.more(8)
    assert outcome.wrong == []
    assert {r["name"] for r in machine.replicas(phase="Ready")} == before


async def test_a_killed_picker_costs_no_request(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    async with load(machine.url, streams=8) as outcome:
        await outcome.more(8)
        machine.kill("pilotage.gateway")
        # Those that run, those that are held, and those that find a new picker.
        await outcome.more(24)
    assert outcome.wrong == []


async def test_a_killed_envoy_comes_back(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    machine.kill("/envoy")
    await asyncio.sleep(0.2)
    outcome = Outcome()
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient(timeout=30) as client:
        while not outcome.whole and time.monotonic() < deadline:
            outcome.wrong.clear()
            await ask(client, machine.url, "sim", tokens=3, stream=True, outcome=outcome)
            await asyncio.sleep(0.1)
    assert outcome.whole == 1, outcome.wrong


def test_a_crashed_engine_is_replaced_and_the_reason_is_shown(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    victim = machine.replicas()[0]
    psutil.Process(victim["pid"]).send_signal(signal.SIGKILL)
    machine.until(lambda: victim["name"] not in {r["name"] for r in machine.replicas()})
    machine.until(lambda: len(machine.replicas(phase="Ready")) == 2)
    assert "the engine ended with SIGKILL" in machine.run("explain", "sim").stdout
    assert 'pilotage_replica_restarts_total{reason="ended",service="default/sim"} 1.0' in machine.metrics()


def test_a_hung_engine_is_found_by_its_progress_and_a_slow_loading_one_is_left_alone():
    with laptop(PILOTAGE_PROGRESS_DEADLINE_SECONDS="3") as machine:
        # Loads for longer than an engine may hang.
        machine.up(simulated("sim", *FAST, "--startup-seconds=6", replicas=1))
        first = machine.replicas()[0]
        assert first["startupSeconds"]["Loading"] >= 6
        psutil.Process(first["pid"]).send_signal(signal.SIGSTOP)
        machine.until(lambda: first["name"] not in {r["name"] for r in machine.replicas()}, within_s=60)
        assert "the engine hangs" in machine.run("explain", "sim").stdout
        machine.until(lambda: len(machine.replicas(phase="Ready")) == 1)
        assert not psutil.pid_exists(first["pid"])


async def test_an_idle_engine_is_not_taken_for_a_hung_one():
    with laptop(PILOTAGE_PROGRESS_DEADLINE_SECONDS="1") as machine:
        machine.up(simulated("sim", *FAST, replicas=1))
        name = machine.replicas()[0]["name"]
        await asyncio.sleep(4)
        assert machine.replicas()[0]["name"] == name


async def test_down_lets_running_answers_finish(machine: Laptop):
    machine.up(simulated("sim", "--step-seconds=0.05"))
    outcome = Outcome()
    async with httpx.AsyncClient(timeout=60) as client:
        streams = [
            asyncio.create_task(ask(client, machine.url, "sim", tokens=60, stream=True, outcome=outcome))
            for _ in range(6)
        ]
        await asyncio.sleep(1)
        down = asyncio.create_task(asyncio.to_thread(machine.run, "down"))
        await asyncio.gather(*streams)
        assert (await down).returncode == 0
    assert outcome.wrong == []
    assert outcome.whole == 6


async def test_down_now_cuts_running_answers_as_an_error_never_as_a_short_answer(machine: Laptop):
    machine.up(simulated("sim", "--step-seconds=0.05"))
    outcome = Outcome()
    async with httpx.AsyncClient(timeout=60) as client:
        stream = asyncio.create_task(ask(client, machine.url, "sim", tokens=2000, stream=True, outcome=outcome))
        await asyncio.sleep(1)
        began_s = time.monotonic()
        assert (await asyncio.to_thread(machine.run, "down", "--now")).returncode == 0
        await stream
    assert time.monotonic() - began_s < 50
    assert outcome.whole == 0
    assert "RemoteProtocolError" in outcome.wrong[0]


def test_a_second_up_adds_services_and_down_takes_only_what_is_named(machine: Laptop):
    machine.up(simulated("one", *FAST, replicas=1))
    machine.up(simulated("two", *FAST, replicas=1))
    assert {s["metadata"]["name"] for s in machine.services()} == {"one", "two"}
    assert machine.run("down", "one").returncode == 0
    assert {s["metadata"]["name"] for s in machine.services()} == {"two"}
    models = httpx.get(f"{machine.url}/v1/models").json()["data"]
    assert [m["id"] for m in models] == ["two", "default/two"]
    wrong = machine.run("down", "tow")
    assert wrong.returncode == 1
    assert "did you mean two?" in wrong.stderr


def test_two_users_live_side_by_side_and_a_taken_port_is_said_before_anything_starts(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    with laptop() as other:
        other.port = machine.port
        refused = other.run("up", "-d", str(other.file(simulated("sim", *FAST))))
        assert refused.returncode == 1
        assert f"127.0.0.1:{machine.port} is taken by envoy" in refused.stderr
        assert "spec.listener.port" in refused.stderr
        assert not other.named("pilotage.agent")
        assert other.services() == []
        # Nor does the daemon stay that was asked in vain.
        other.until(lambda: not other.processes(), within_s=60)
        other.port = other.port + 1 if other.port + 1 != machine.metrics_port else other.port + 2
        other.up(simulated("sim", *FAST, replicas=1))
        assert len(machine.replicas(phase="Ready")) == len(other.replicas(phase="Ready")) == 1


def test_scaling_by_the_file_and_to_zero(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    first = machine.replicas()[0]["name"]
    machine.up(simulated("sim", *FAST, replicas=3))
    assert first in {r["name"] for r in machine.replicas(phase="Ready")}
    assert len(machine.replicas(phase="Ready")) == 3
    machine.up(simulated("sim", *FAST, replicas=0, wait_s=0))
    machine.until(lambda: not machine.replicas())
    body = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}]}
    answer = httpx.post(f"{machine.url}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "scaled_to_zero"


def test_an_engine_that_cannot_start_is_named_with_its_last_words(machine: Laptop):
    done = machine.run("up", "-d", str(machine.file(simulated("sim", "--fail-to-load", replicas=1))))
    assert done.returncode == 1
    assert "replicas failed 3 times in a row" in done.stderr
    assert "the fault --fail-to-load was asked for" in done.stderr
    assert machine.run("status", "sim").returncode == 1
    machine.up(simulated("sim", replicas=1))


def test_when_all_caretakers_are_killed_at_once_nothing_stays_for_long(machine: Laptop):
    machine.up(simulated("sim", *FAST))
    for process in [*machine.named("guardian.py"), *machine.daemons()]:
        process.send_signal(signal.SIGKILL)
    # Replicas end by themselves; the gateway's own limit is a minute.
    machine.until(lambda: not machine.named("pilotage.agent"), within_s=90)
    assert not machine.named("simulated.server")


def test_a_killed_guardian_is_replaced(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    old = machine.named("guardian.py")[0]
    old.send_signal(signal.SIGKILL)
    machine.until(lambda: any(p.pid != old.pid for p in machine.named("guardian.py")), within_s=60)


def test_ctrl_c_drains_and_a_second_one_stops_at_once(machine: Laptop):
    running = machine.begin("up", str(machine.file(simulated("sim", *FAST, drain_s=600))))
    try:
        machine.until(lambda: bool(machine.services()) and machine.condition("Ready")["reason"] == "Serving")
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
        assert running.returncode == 0
        assert "draining" in errors
        assert machine.services() == []
    finally:
        running.kill()


async def test_a_second_ctrl_c_does_not_wait_for_running_answers(machine: Laptop):
    running = machine.begin("up", str(machine.file(simulated("sim", "--step-seconds=0.05", drain_s=600))))
    try:
        await asyncio.to_thread(
            machine.until, lambda: bool(machine.services()) and machine.condition("Ready")["reason"] == "Serving"
        )
        outcome = Outcome()
        async with httpx.AsyncClient(timeout=90) as client:
            stream = asyncio.create_task(ask(client, machine.url, "sim", tokens=3000, stream=True, outcome=outcome))
            await asyncio.sleep(1)
            running.send_signal(signal.SIGINT)
            await asyncio.sleep(2)
            assert not stream.done()
            running.send_signal(signal.SIGINT)
            await stream
        await asyncio.to_thread(running.communicate, timeout=30)
        assert outcome.whole == 0
        assert machine.services() == []
    finally:
        running.kill()


def test_api_keys_come_from_a_file_or_the_environment_and_stay_out_of_files_and_logs():
    with laptop(PILOTAGE_SECRET_KEYS_TEAM_A="key-of-team-a-1234") as machine:
        keyed = simulated("sim", *FAST, replicas=1) + (
            "  access:\n    keysFrom:\n"
            "    - secretRef: {name: keys, key: team-a}\n    - secretRef: {name: keys, key: team-b}\n"
        )
        missing = machine.run("up", "-d", str(machine.file(keyed)))
        assert missing.returncode == 1
        assert "PILOTAGE_SECRET_KEYS_TEAM_B" in missing.stderr
        secrets = machine.home / "config" / "secrets" / "keys"
        secrets.mkdir(parents=True)
        (secrets / "team-b").write_text("# of team b\nkey-of-team-b-5678\n")
        machine.up(keyed)
        body = {"model": "sim", "messages": [{"role": "user", "content": "a-private-prompt"}], "max_tokens": 2}
        url = f"{machine.url}/v1/chat/completions"
        assert httpx.post(url, json=body).status_code == 401
        for key in ("key-of-team-a-1234", "key-of-team-b-5678"):
            assert httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}).status_code == 200
        time.sleep(0.5)
        for path in (machine.home / "state").rglob("*"):
            if path.is_file():
                text = path.read_bytes()
                assert b"key-of-team" not in text, path
                assert b"a-private-prompt" not in text, path


def test_listening_beyond_loopback_without_keys_is_refused(machine: Laptop):
    gateway = (
        "apiVersion: pilotage.io/v1alpha1\nkind: LLMGateway\nspec:\n"
        f"  listener: {{address: 0.0.0.0, port: {machine.port}}}\n  metrics: {{port: {machine.metrics_port}}}\n"
    )
    done = machine.run("up", "-d", str(machine.file(simulated(), gateway=gateway)))
    assert done.returncode == 2
    assert "spec.access" in done.stderr
    assert machine.processes() == []


def test_an_engine_refuses_whoever_has_not_the_key_of_the_run(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    endpoint = machine.replicas()[0]["endpoint"]
    body = {"model": "sim", "prompt": "Hi", "max_tokens": 2}
    assert httpx.post(f"http://{endpoint}/v1/completions", json=body).status_code == 401
    assert httpx.post(f"{machine.url}/simulate/fault", json={"kind": "crash"}).status_code == 404
    assert httpx.get(f"{machine.url}/metrics").status_code == 404


def test_machine_output_is_json_and_keeps_its_shape(machine: Laptop):
    done = machine.run("up", "-d", "--output", "json", str(machine.file(simulated("sim", *FAST, replicas=1))))
    assert done.returncode == 0, done.stderr
    service = json.loads(done.stdout)[0]
    assert service["kind"] == "LLMService"
    assert service["spec"]["lifecycle"]["maxWaitSeconds"] == 60
    assert {c["type"] for c in service["status"]["conditions"]} == {
        "Ready", "WeightsAvailable", "Planned", "ReplicasAvailable", "GatewayProgrammed",
    }  # fmt: skip
    status = json.loads(machine.run("status", "sim", "--output", "json").stdout)
    assert status["decisions"][-1]["reason"] == "Start"
    assert json.loads(machine.run("cache", "ls", "--output", "json").stdout) is not None
    assert json.loads(machine.run("version", "--output", "json").stdout)["daemon"] == "0.1.0"


@pytest.mark.parametrize("name", ["ps", "down", "logs", "cache"])
def test_commands_without_a_daemon_say_so_without_a_traceback(machine: Laptop, name: str):
    done = machine.run(*([name, "ls"] if name == "cache" else [name]))
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert machine.processes() == []


def test_a_service_that_cannot_be_planned_stops_no_other(machine: Laptop):
    broken = (
        simulated("broken", *FAST, replicas=1)
        .replace("Simulated", "LlamaCpp")
        .replace("hf://example/simulated", "hf://own/foo--bar")
    )
    broken = broken.replace('args: ["--step-seconds=0.01"]', "args: []")
    machine.run("up", "-d", "--timeout", "5", str(machine.file(broken)))
    machine.up(simulated("sim", *FAST, replicas=1))
    assert machine.condition("Ready")["reason"] == "Serving"
    assert machine.condition("Ready", of="broken")["status"] == "False"


def test_secrets_of_the_command_count_and_reach_no_engine(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    # The daemon runs already; the secret is in the environment of the next command only.
    machine.env["PILOTAGE_SECRET_KEYS_K"] = "a-key-for-later"
    keyed = simulated("keyed", *FAST, replicas=1) + "  access: {keysFrom: [{secretRef: {name: keys, key: k}}]}\n"
    machine.up(keyed)
    del machine.env["PILOTAGE_SECRET_KEYS_K"]
    for process in machine.named("simulated.server"):
        assert "PILOTAGE_SECRET_KEYS_K" not in process.environ()
    # The daemon's successor knows the hash, and needs no secret.
    (old,) = machine.daemons()
    old.send_signal(signal.SIGKILL)
    machine.until(lambda: any(p.pid != old.pid for p in machine.daemons()), within_s=60)
    body = {"model": "keyed", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    url = f"{machine.url}/v1/chat/completions"
    assert httpx.post(url, json=body).status_code == 401
    assert httpx.post(url, json=body, headers={"authorization": "Bearer a-key-for-later"}).status_code == 200


def test_after_a_reboot_the_commands_find_their_way(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    for process in machine.processes():
        process.kill()
    machine.until(lambda: not machine.processes())
    assert machine.services()
    machine.until(lambda: machine.condition("Ready")["reason"] == "Serving")
    assert machine.run("down").returncode == 0


def test_a_wedged_agent_is_killed_in_the_end(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1, drain_s=1))
    (agent,) = machine.named("pilotage.agent")
    agent.send_signal(signal.SIGSTOP)
    assert machine.run("down", "--now", timeout_s=90).returncode == 0
    assert not machine.named("pilotage.agent")
    assert not machine.named("simulated.server")


def test_a_gateway_that_cannot_start_is_said_with_its_last_words(machine: Laptop):
    machine.up(simulated("sim", *FAST, replicas=1))
    for process in machine.processes():
        process.kill()
    machine.until(lambda: not machine.processes())
    # After the crash somebody else has its port.
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", machine.port))
        thief.listen()
        machine.until(lambda: machine.condition("GatewayProgrammed")["reason"] == "GatewayFailing", within_s=90)
        assert "envoy keeps ending" in machine.condition("GatewayProgrammed")["message"]
    machine.until(lambda: machine.condition("Ready")["reason"] == "Serving", within_s=60)
