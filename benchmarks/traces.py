"""Public traces, read from where they lie: PILOTAGE_TRACES, or shared/traces beside the checkout."""

import csv
import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace: when it came, how long it is, and its prefix blocks of 512 tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


def folder() -> Path:
    """The folder of all traces. Exits with a sentence when there is none."""
    found = Path(os.environ.get("PILOTAGE_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
    if not found.is_dir():
        sys.exit(f"no traces at {found}: set PILOTAGE_TRACES to a folder with mooncake-fast25/")
    return found


def mooncake() -> list[Arrival]:
    """The conversation trace of Mooncake (FAST'25), in order of arrival."""
    (path,) = sorted((folder() / "mooncake-fast25").glob("*.jsonl"))[:1]
    arrivals = []
    for line in path.read_text().splitlines():
        said = json.loads(line)
        arrivals.append(
            Arrival(said["timestamp"] / 1000, said["input_length"], said["output_length"], tuple(said["hash_ids"]))
        )
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def azure() -> list[Arrival]:
    """The conversations of Azure's 2023 trace, in order of arrival. It has no prefixes: every request is new."""
    arrivals: list[Arrival] = []
    with (folder() / "azure-2023" / "AzureLLMInferenceTrace_conv.csv").open() as file:
        for row in csv.DictReader(file):
            at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            prompt_tokens, first = int(row["ContextTokens"]), len(arrivals) * 10_000
            blocks = tuple(range(first, first + prompt_tokens // 512))
            arrivals.append(Arrival(at_s, prompt_tokens, int(row["GeneratedTokens"]), blocks))
    return sorted(arrivals, key=lambda arrival: arrival.at_s)
