"""The small parts that the local fleet stands on."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilotage.api import SecretKeyRef
from pilotage.fleet.local.logs import LARGEST_LOG_BYTES, MOST_LOGS, trim_logs
from pilotage.fleet.local.machine import PortTaken, available_memory_bytes, free_port, require_free_port
from pilotage.fleet.local.processes import ProcessIdentity, saved_process, spawn, start_mark
from pilotage.fleet.local.secrets import SecretMissing, ToldSecret, secret


def test_a_process_is_known_again_by_what_was_saved_and_not_by_its_pid_alone(tmp_path: Path):
    process = spawn([sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    process.save(tmp_path / "saved.json")
    found = saved_process(tmp_path / "saved.json")
    assert found == process
    assert found.is_alive()
    assert not ProcessIdentity(process.pid, "another start").is_alive()
    import signal

    found.signal(signal.SIGKILL)
    for _ in range(200):
        if not found.is_alive():
            break
        time.sleep(0.02)
    assert not found.is_alive()
    assert start_mark(2**22 + 1) is None


def test_what_is_started_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PILOTAGE_SECRET_A_B", "hidden")
    spawn([sys.executable, "-c", "import os; print(sorted(os.environ))"], log=tmp_path / "log")
    for _ in range(200):
        if (tmp_path / "log").exists() and (tmp_path / "log").read_text().endswith("]\n"):
            break
        time.sleep(0.02)
    assert "PILOTAGE_SECRET" not in (tmp_path / "log").read_text()
    assert "PATH" in (tmp_path / "log").read_text()


def test_a_taken_port_is_named_with_who_has_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} is taken by .+ \(pid \d+\)"):
            require_free_port("127.0.0.1", port, field="spec.listener.port")
    require_free_port("127.0.0.1", free_port(), field="spec.listener.port")
    with pytest.raises(PortTaken, match="can't be listened on"):
        require_free_port("192.0.2.1", 8080, field="spec.listener.port")


def test_memory_is_a_positive_part_of_what_the_machine_has():
    assert available_memory_bytes() > 0


def test_a_secret_comes_from_the_environment_or_a_file_and_its_absence_names_both(tmp_path: Path):
    ref = SecretKeyRef(name="chat-keys", key="team.a")
    assert ref.environment_variable == "PILOTAGE_SECRET_CHAT_KEYS_TEAM_A"
    with pytest.raises(SecretMissing) as raised:
        secret(ref, folder=tmp_path, environment={}, told={})
    assert "PILOTAGE_SECRET_CHAT_KEYS_TEAM_A" in raised.value.hint
    assert str(tmp_path / "chat-keys" / "team.a") in raised.value.hint
    (tmp_path / "chat-keys").mkdir()
    (tmp_path / "chat-keys" / "team.a").write_text("from-file\n")
    assert secret(ref, folder=tmp_path, environment={}, told={}) == "from-file"
    environment = {ref.environment_variable: "from-env"}
    assert secret(ref, folder=tmp_path, environment=environment, told={}) == "from-env"


def test_a_secret_that_a_command_told_counts_until_its_file_is_written_anew(tmp_path: Path):
    ref = SecretKeyRef(name="k", key="v")
    told = {ref.environment_variable: ToldSecret("told", at_s=1_000)}
    assert secret(ref, folder=tmp_path, environment={}, told=told) == "told"
    (tmp_path / "k").mkdir()
    path = tmp_path / "k" / "v"
    path.write_text("rotated")
    os.utime(path, (999, 999))
    assert secret(ref, folder=tmp_path, environment={}, told=told) == "told"
    os.utime(path, (1_001, 1_001))
    environment = {ref.environment_variable: "from the daemon's own environment, older still"}
    assert secret(ref, folder=tmp_path, environment=environment, told=told) == "rotated"
    assert "told" not in repr(told[ref.environment_variable]).replace("ToldSecret", "")


def test_a_log_that_grew_large_is_cut_under_its_writer(tmp_path: Path):
    path = tmp_path / "a.log"
    with path.open("ab") as writer:
        writer.truncate(LARGEST_LOG_BYTES + 10)
        writer.seek(0, 2)
        writer.write(b"last words\n")
        writer.flush()
        trim_logs(tmp_path, in_use=())
        writer.write(b"and more\n")
    assert path.read_bytes() == b"and more\n"
    assert (tmp_path / "a.old").read_bytes().endswith(b"last words\n")


def test_the_oldest_logs_go_but_never_one_that_is_in_use(tmp_path: Path):
    for number in range(MOST_LOGS + 3):
        path = tmp_path / f"sim-abcde-{number:06}.log"
        path.touch()
        os.utime(path, (number, number))
    for name in ("daemon.log", "sim-abcde-000001.agent.log"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    trim_logs(tmp_path, in_use={"sim-abcde-000001"})
    gone = {f"sim-abcde-{number:06}.log" for number in range(MOST_LOGS + 3)} - {p.name for p in tmp_path.iterdir()}
    assert gone == {"sim-abcde-000000.log", "sim-abcde-000002.log"}
    assert (tmp_path / "daemon.log").exists()
    assert (tmp_path / "sim-abcde-000001.agent.log").exists()


def test_a_guardian_restarts_what_dies_and_ends_when_it_is_no_longer_wanted(tmp_path: Path):
    from pilotage.fleet.local import guardian

    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "logs").mkdir()
    (run / "wanted").touch()
    daemon = (
        "import fcntl, pathlib, sys, time; run = pathlib.Path(sys.argv[1]); lock = (run / 'daemon.lock').open('w');"
        "fcntl.flock(lock, fcntl.LOCK_EX); (run / 'births').open('a').write('x'); time.sleep(0.3)"
    )
    command = [sys.executable, guardian.__file__, str(run), sys.executable, "-c", daemon, str(run)]
    guard = subprocess.Popen(command)
    try:
        for _ in range(600):
            if (run / "births").exists() and len((run / "births").read_text()) >= 3:
                break
            time.sleep(0.02)
        assert len((run / "births").read_text()) >= 3
        (run / "wanted").unlink()
        assert guard.wait(timeout=20) == 0
    finally:
        guard.kill()
