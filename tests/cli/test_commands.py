"""Commands that need nothing running: what they print, where, and with which exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PILOTAGE = [sys.executable, "-c", "from pilotage.cli import main; main()"]
WRONG = """\
apiVersion: pilotage.io/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  modle: {source: "hf://a/b"}
  engine: {type: LlamaCpp, args: ["--paralel=3"]}
"""
GOOD = WRONG.replace("modle", "model").replace("--paralel", "--parallel")


def run(*args: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PILOTAGE_HOME": str(home), **environment}
    return subprocess.run([*PILOTAGE, *args], env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_a_wrong_file_is_exit_code_2_with_every_mistake_on_stderr_and_starts_nothing(tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    for command in ("validate", "up"):
        done = run(command, str(path), home=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"{path}:5: spec.modle: unknown field (did you mean model?)" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_wrong_engine_flag_is_named_with_the_nearest(tmp_path: Path, good: Path):
    good.write_text(GOOD.replace("--parallel", "--paralel"))
    done = run("validate", str(good), home=tmp_path)
    assert done.returncode == 2
    assert "good.yaml:6: spec.engine.args: llama.cpp has no flag '--paralel'" in done.stderr
    assert "did you mean --parallel?" in done.stderr
    good.write_text(GOOD.replace("--parallel=3", "--parallel=0"))
    assert "--parallel is 0" in run("validate", str(good), home=tmp_path).stderr


def test_validate_shows_the_defaults_it_filled_in(tmp_path: Path, good: Path):
    done = run("validate", "--output", "json", str(good), home=tmp_path)
    assert done.returncode == 0
    (resource,) = json.loads(done.stdout)
    assert resource["spec"]["lifecycle"]["drainSeconds"] == 600
    assert run("validate", str(good), home=tmp_path).stdout == f"{good}: LLMService chat is valid\n"


def test_merge_keys_and_huge_numbers_are_mistakes_or_values_and_no_tracebacks(tmp_path: Path, good: Path):
    good.write_text(GOOD.replace("spec:", "x: &x {replicas: 2}\nspec:\n  <<: *x"))
    done = run("validate", str(good), home=tmp_path)
    assert done.returncode == 2
    assert "x: unknown field" in done.stderr
    good.write_text(GOOD + f"  replicas: {10**30}\n")
    done = run("validate", str(good), home=tmp_path)
    assert done.returncode == 2
    assert "spec.replicas" in done.stderr


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    done = run("up", str(tmp_path / "none.yaml"), home=tmp_path)
    assert done.returncode == 1
    assert "can't be read: No such file or directory" in done.stderr


def test_a_mistyped_command_gets_the_nearest(tmp_path: Path):
    done = run("stauts", home=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'status'?" in done.stderr


@pytest.mark.parametrize(
    "command", ["up", "down", "ps", "status", "explain", "logs", "chat", "validate", "cache", "version"]
)
def test_every_command_teaches_itself(tmp_path: Path, command: str):
    done = run(command, "--help", home=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_each_shell(tmp_path: Path, shell: str):
    assert "_PILOTAGE_COMPLETE" in run("completion", shell, home=tmp_path).stdout


def test_errors_have_a_hint_and_no_color_where_none_is_wanted(tmp_path: Path):
    done = run("status", "chat", home=tmp_path, NO_COLOR="1")
    assert done.returncode == 1
    assert done.stderr == "error: nothing is served here\nhint: start something with `pilotage up FILE`\n"


def test_a_home_whose_path_is_too_long_for_sockets_is_said(tmp_path: Path):
    done = run("ps", home=tmp_path / ("x" * 120))
    assert done.returncode == 1
    assert "set PILOTAGE_HOME to a shorter path" in done.stderr


def test_schema_prints_what_editors_and_clusters_read(tmp_path: Path):
    assert json.loads(run("schema", "json", home=tmp_path).stdout)["oneOf"]
    assert run("schema", "crds", home=tmp_path).stdout.count("kind: CustomResourceDefinition") == 2
