"""Secrets on one machine: an environment variable, or a file in the configuration folder."""

from collections.abc import Mapping
from pathlib import Path

from pilotage.api import SecretKeyRef
from pilotage.errors import Invalid


class SecretMissing(Invalid):
    """A secret that the file names is nowhere."""

    condition_reason = "SecretMissing"


def secret(ref: SecretKeyRef, *, folder: Path, environment: Mapping[str, str]) -> str:
    """The secret's text. Raises SecretMissing, which names both places, and never the text.

    `environment` is that of the command that named the secret, which the daemon's own need not be.
    """
    text = environment.get(ref.environment_variable)
    if text is not None:
        return text.strip()
    path = folder / ref.name / ref.key
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise SecretMissing(
            f"the secret {ref.name}, key {ref.key}, is not on this machine",
            hint=f"set {ref.environment_variable}, or write it to {path} (mode 600)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecretMissing(f"{path} can't be read", hint="make it a text file that you may read") from error
