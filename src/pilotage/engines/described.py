"""Engines that are known by description alone: their own server is started, by its own flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pilotage.engines.adapter import (
    KEY_VARIABLE,
    InvalidEngineArgs,
    Launch,
    MetricNames,
    Route,
    WarmUp,
    at_least_one,
    parsed_args,
)

Flags = Mapping[str, type[int] | type[float] | type[str] | type[bool]]


# By exact path: vLLM's key guards /v1 only in many versions, and some of what lies there is administration.
ROUTES: Mapping[str, tuple[Route, ...]] = {
    "generate": (Route("/v1/chat/completions", "messages"), Route("/v1/completions", "prompt")),
    "embed": (Route("/v1/embeddings", "input"),),
}
RUNNING_USAGE: Mapping[str, object] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
OFFLINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One engine as data. Texts in `command` and `own_flags` may hold {model}, {port}, {name} and {context}.

    `flags` are those that a user may set, by their full names: both servers take abbreviations, so a flag that is not
    in the list is refused and not looked for in a list of forbidden ones. `slots_flag` is the one that says how many
    requests run at once, `env` what the server is started with, `key_variable` where it looks for its key (None: it
    has to be given as a flag, where other users of the machine can read it).
    """

    title: str
    version: str
    program: str
    command: tuple[str, ...]
    own_flags: tuple[str, ...]
    flags: Flags
    slots_flag: str
    default_slots: int
    metrics: MetricNames
    env: Mapping[str, str]
    key_variable: str | None
    routes_by_task: Mapping[str, tuple[Route, ...]] = field(default_factory=lambda: ROUTES)
    # Usage in every chunk: vLLM before 0.20 and SGLang tell it only when asked so.
    stream_patch: Mapping[str, object] = field(default_factory=lambda: RUNNING_USAGE)
    # Less than both servers keep an idle connection by `env`.
    keepalive_s: float = 60.0
    health_path: str = "/health"
    needs_weights: bool = True
    file_formats: tuple[str, ...] = ("safetensors",)
    model_name: str | None = None
    # `--no-FLAG` turns a flag off that is on by default.
    negates: bool = False
    refused_in_names: str = ""
    warm_up: WarmUp = field(
        default_factory=lambda: WarmUp(path="/v1/completions", body={"prompt": "Hello", "max_tokens": 2})
    )

    def routes(self, args: Sequence[str]) -> tuple[Route, ...]:
        """What clients may ask, by the task that the flags choose."""
        parsed = self._parsed(args)
        embeds = parsed.get("--runner") == "pooling" or bool(parsed.get("--is-embedding"))
        return self.routes_by_task["embed" if embeds else "generate"]

    def slots(self, args: Sequence[str]) -> int:
        """Requests it works on at once."""
        return at_least_one(int(self._parsed(args).get(self.slots_flag, self.default_slots)), flag=self.slots_flag)

    def launch(
        self, *, model: Path | None, args: Sequence[str], port: int, context_tokens: int, served_name: str
    ) -> Launch:
        """How to start it on loopback."""
        assert model is not None
        slots = self.slots(args)
        said = {"model": str(model), "port": str(port), "name": served_name, "context": str(context_tokens)}
        own = tuple(text.format(**said) for text in (*self.command, *self.own_flags))
        chosen = tuple(
            word for arg in args if arg.partition("=")[0] != self.slots_flag for word in self._as_the_engine_says(arg)
        )
        key = () if self.key_variable else (f"--api-key=$({KEY_VARIABLE})",)
        return Launch(
            argv=(*own, f"{self.slots_flag}={slots}", *key, *chosen),
            env=dict(self.env),
            key_variable=self.key_variable or KEY_VARIABLE,
        )

    def require_name(self, name: str) -> None:
        """Raises InvalidEngineArgs for a name that the engine refuses."""
        if self.refused_in_names and self.refused_in_names in name:
            raise InvalidEngineArgs(
                f"{self.title} takes no model name with {self.refused_in_names!r}: {name!r}",
                hint="choose other spec.model.servedNames",
            )

    def _as_the_engine_says(self, arg: str) -> tuple[str, ...]:
        """A flag that is on or off has no value there."""
        name, _, text = arg.partition("=")
        if self.flags[name] is not bool:
            return (arg,)
        if text == "false":
            return (f"--no-{name.removeprefix('--')}",) if self.negates else ()
        return (name,)

    def _parsed(self, args: Sequence[str]) -> dict[str, int | float | str | bool]:
        return parsed_args(args, known=self.flags, engine=self.title)
