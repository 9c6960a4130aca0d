"""The package as a user installs it: a wheel in an environment of its own, as pipx does."""

import subprocess
import sys
from pathlib import Path

from tests.local import laptop as laptops
from tests.local.laptop import laptop, simulated

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_installs_by_itself_and_serves(tmp_path: Path, monkeypatch):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True,
                   capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(constraints(tmp_path)), str(wheel)]
    subprocess.run([str(python), *install], check=True)
    monkeypatch.setattr(laptops, "PILOTAGE", [str(tmp_path / "venv" / "bin" / "pilotage")])
    with laptop() as machine:
        machine.up(simulated("sim", "--step-seconds=0.01", replicas=1))
        assert len(machine.replicas(phase="Ready")) == 1
        assert all(str(tmp_path) in process.cmdline()[0] for process in machine.named("pilotage.agent"))


def constraints(folder: Path) -> Path:
    """The locked versions, without hashes: a wheel that was just built has none."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.removesuffix("\\").strip() for line in lines if line and line[0].isalnum()]
    path = folder / "constraints.txt"
    path.write_text("\n".join(pins))
    return path
