"""One reading of an engine's metrics page."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """What an engine said of itself. `None` is "it didn't say".

    `progress` grows whenever the engine does any work on a request; its unit is the engine's own.
    """

    running: int | None
    waiting: int | None
    progress: float | None


def parse_samples(text: str, *, running: str, waiting: str, progress: tuple[str, ...]) -> EngineSample:
    """The sample in a Prometheus text page, by the metric names that the engine uses."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return EngineSample(
        running=_count(values, running),
        waiting=_count(values, waiting),
        progress=sum(values[name] for name in progress if name in values) if _any(values, progress) else None,
    )


def _count(values: Mapping[str, float], name: str) -> int | None:
    return int(values[name]) if name in values else None


def _any(values: Mapping[str, float], names: tuple[str, ...]) -> bool:
    return any(name in values for name in names)
