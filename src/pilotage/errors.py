"""What every error of Pilotage has: a sentence, a remedy, and a reason for the status."""

from typing import ClassVar


class PilotageError(Exception):
    """Something went wrong that a user can read about.

    `hint` says what to do. `condition_reason` is the CamelCase word that a status condition shows.
    """

    condition_reason: ClassVar[str] = "Failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Invalid(PilotageError):
    """The request itself is wrong; trying again gives the same answer."""

    condition_reason = "Invalid"


class Unavailable(PilotageError):
    """It may work later; worth retrying."""

    condition_reason = "Unavailable"
