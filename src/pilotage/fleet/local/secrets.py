"""Secrets on one machine: an environment variable, or a file in the configuration folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilotage.api import SecretKeyRef
from pilotage.errors import Invalid


class SecretMissing(Invalid):
    """A secret that the file names is nowhere."""

    condition_reason = "SecretMissing"


@dataclass(frozen=True, slots=True)
class ToldSecret:
    """What a command's environment held when it ran, in seconds since 1970."""

    text: str = field(repr=False)
    at_s: float


def secret(ref: SecretKeyRef, *, folder: Path, environment: Mapping[str, str], told: Mapping[str, ToldSecret]) -> str:
    """The secret's text. Raises SecretMissing, which names both places, and never the text.

    `told` is from the environments of commands, which the daemon's own need not be. It goes before the file, unless the
    file was written later: a secret that is rotated there must count.
    """
    path = folder / ref.name / ref.key
    said = told.get(ref.environment_variable)
    if said is not None and said.at_s >= _written_s(path):
        return said.text.strip()
    text = environment.get(ref.environment_variable)
    if text is not None and said is None:
        return text.strip()
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise SecretMissing(
            f"the secret {ref.name}, key {ref.key}, is not on this machine",
            hint=f"set {ref.environment_variable}, or write it to {path} (mode 600)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecretMissing(f"{path} can't be read", hint="make it a text file that you may read") from error


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
