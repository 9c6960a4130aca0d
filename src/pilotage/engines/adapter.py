"""What the platform needs to know of an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pilotage.errors import Invalid

KEY_VARIABLE = "PILOTAGE_ENGINE_KEY"


class InvalidEngineArgs(Invalid):
    """`spec.engine.args` says something that the engine does not take."""

    condition_reason = "InvalidEngineArgs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start the engine. The key that it must ask for is not here: it is in the environment, as `key_variable`,
    and where a text of `argv` says $(PILOTAGE_ENGINE_KEY) it is put in its place, as Kubernetes does."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    key_variable: str = KEY_VARIABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricNames:
    """The engine's own names. `progress` are counters that grow with any work done on a request."""

    running: str
    waiting: str
    progress: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A path that clients may ask, and the field that holds its prompt."""

    path: str
    prompt: Literal["messages", "prompt", "input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """The request whose answer makes a replica ready."""

    path: str
    body: Mapping[str, object]


class EngineAdapter(Protocol):
    """One kind of engine. All members are facts; nothing here touches the world."""

    @property
    def needs_weights(self) -> bool:
        """Whether a model's file must be there."""

    @property
    def file_formats(self) -> tuple[str, ...]:
        """Formats of weights that it reads, as the catalog names them."""

    @property
    def metrics(self) -> MetricNames: ...

    @property
    def health_path(self) -> str:
        """Answers 200 once the model is loaded."""

    @property
    def warm_up(self) -> WarmUp: ...

    @property
    def stream_patch(self) -> Mapping[str, object]:
        """Fields that make a streamed answer tell its usage while it runs."""

    @property
    def keepalive_s(self) -> float:
        """How long an idle connection to it may be kept."""

    @property
    def model_name(self) -> str | None:
        """The only `model` that it accepts, or None when it takes any."""

    def routes(self, args: Sequence[str]) -> tuple[Route, ...]:
        """What clients may ask of it when it is started with `args`; all else is refused."""

    def slots(self, args: Sequence[str]) -> int:
        """Requests it works on at once. Raises InvalidEngineArgs."""

    def require_name(self, name: str) -> None:
        """Raises InvalidEngineArgs for a served name that the engine refuses."""

    def launch(
        self, *, model: Path | None, args: Sequence[str], port: int, context_tokens: int, served_name: str
    ) -> Launch:
        """How to start it on loopback. Raises InvalidEngineArgs."""


def parsed_args(
    args: Sequence[str], *, known: Mapping[str, type[int] | type[float] | type[str] | type[bool]], engine: str
) -> dict[str, int | float | str | bool]:
    """`--name=value` flags by name. Raises InvalidEngineArgs, naming the nearest flag, for what is not `known`."""
    import difflib

    values: dict[str, int | float | str | bool] = {}
    for arg in args:
        name, separator, text = arg.partition("=")
        kind = known.get(name)
        if kind is None:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise InvalidEngineArgs(
                f"{engine} has no flag {name!r} that can be set here",
                hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}",
            )
        if kind is bool and not separator:
            values[name] = True
            continue
        try:
            values[name] = {"true": True, "false": False}[text] if kind is bool else kind(text)
        except (ValueError, KeyError) as error:
            raise InvalidEngineArgs(
                f"{name} wants {'true or false' if kind is bool else _called(kind)}, found {text!r}",
                hint=f"write {name}=VALUE",
            ) from error
    return values


def at_least_one(count: int, *, flag: str) -> int:
    """`count`, or InvalidEngineArgs when it is below one."""
    if count < 1:
        raise InvalidEngineArgs(f"{flag} is {count}", hint="an engine works on one request at least")
    return count


def _called(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text"}[kind]
