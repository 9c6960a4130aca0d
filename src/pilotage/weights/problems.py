"""What can go wrong with weights, each with its remedy."""

from pilotage.errors import PilotageError, Unavailable
from pilotage.units import in_gb


class WeightsError(PilotageError):
    """Weights can't be had."""

    condition_reason = "WeightsUnavailable"


class TokenNeeded(WeightsError):
    """The source wants a token and none was given."""

    condition_reason = "TokenNeeded"

    def __init__(self, source: str) -> None:
        super().__init__(
            f"{source} is private or does not exist, and no token was given",
            hint="name a token's Secret in spec.model.credentials.secretRef, and check the repository's name",
        )


class AccessDenied(WeightsError):
    """The token does not open the source."""

    condition_reason = "AccessDenied"

    def __init__(self, source: str, *, gated: bool) -> None:
        super().__init__(
            f"the token given does not open {source}",
            hint="accept the model's conditions on its page with the token's account" if gated else "use another token",
        )


class NotFound(WeightsError):
    """The source has no such thing."""

    condition_reason = "NotFound"


class RateLimited(WeightsError, Unavailable):
    """The source answers too many requests."""

    condition_reason = "RateLimited"

    def __init__(self, source: str) -> None:
        super().__init__(
            f"{source} is refused for now: too many requests from here",
            hint="wait, or give a token (spec.model.credentials), which raises the limit",
        )


class SourceUnreachable(WeightsError, Unavailable):
    """The source doesn't answer, or breaks off."""

    condition_reason = "SourceUnreachable"


class DigestMismatch(WeightsError):
    """What came is not what was promised."""

    condition_reason = "DigestMismatch"

    def __init__(self, name: str, *, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        super().__init__(
            f"{name} has sha256 {found[:12]}..., where its source promises {expected[:12]}...; it was thrown away",
            hint="try again; if it stays so, the source or a proxy in between is damaged",
        )


class UnsafeName(WeightsError):
    """A source holds a file whose name leads out of its folder."""

    condition_reason = "UnsafeName"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the source holds a file {name!r}, which leads out of its folder", hint="rename it at its source"
        )


class NotEnoughDisk(WeightsError):
    """The disk can't hold it."""

    condition_reason = "NotEnoughDisk"

    def __init__(self, folder: str, *, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes, self.free_bytes = needed_bytes, free_bytes
        super().__init__(
            f"{folder} has {in_gb(free_bytes)} free, and {in_gb(needed_bytes)} are needed",
            hint="free space, run `pilotage cache prune`, or set PILOTAGE_CACHE to a larger disk",
        )
