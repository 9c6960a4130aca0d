"""What is wanted, on disk: a service's resource, and what its defaults became."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict

from pilotage.api import LLMGateway, LLMService
from pilotage.files import write_atomically
from pilotage.gateway import KeyEntry

# What `resolved_for` says while the weights of a plan are gone from where they were.
WEIGHTS_LOST = ""


class Resolved(BaseModel):
    """What a revision runs with: everything that the file left open, fixed until the user changes the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_path: Path | None
    weights_source: str
    weights_digest: str
    store_entry: str | None
    context_tokens: int
    slots: int
    shared_bytes: int
    replica_bytes: int
    cache_tokens: int
    reason: str


class ServiceRecord(BaseModel):
    """One service as it is wanted. `delete_within_s` is set when it is to go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: LLMService
    created_s: float
    generation: int = 1
    resolved: Resolved | None = None
    resolved_for: str = WEIGHTS_LOST
    delete_within_s: float | None = None
    # Hashes of the API keys and their limits, so that a restart needs no secret.
    keys: tuple[KeyEntry, ...] | None = None

    @property
    def key(self) -> str:
        return self.service.key

    @property
    def planning_key(self) -> str:
        """Changes when `resolved` has to be made anew: with the model or the engine's flags."""
        spec = self.service.spec
        said = [
            spec.model.source,
            spec.model.context_tokens,
            spec.engine.type.value,
            spec.engine.args,
        ]
        return _hash(said)

    @property
    def is_planned(self) -> bool:
        """`resolved` holds for the file as it is now."""
        return self.resolved is not None and self.resolved_for == self.planning_key

    @property
    def has_lost_weights(self) -> bool:
        """It was planned, and its weights went away since."""
        return self.resolved is not None and self.resolved_for == WEIGHTS_LOST

    @property
    def revision(self) -> str:
        """Changes when replicas have to be replaced: with what they run, or what they run it with."""
        spec = self.service.spec
        resolved = self.resolved
        said = [
            spec.engine.type.value,
            spec.engine.args,
            [(env.name, env.value) for env in spec.engine.env],
            resolved and [resolved.weights_digest, resolved.context_tokens, resolved.slots],
        ]
        return _hash(said)[:5]


def _hash(said: object) -> str:
    return hashlib.sha256(orjson.dumps(said)).hexdigest()[:16]


@dataclass(slots=True)
class ServiceRecords:
    """The folder of all records, and the gateway's resource beside them."""

    folder: Path

    def load(self) -> dict[str, ServiceRecord]:
        """All records. One that can't be read (written by a later version, say) is left where it is."""
        records = {}
        for path in sorted(self.folder.glob("service-*.json")):
            try:
                record = ServiceRecord.model_validate_json(path.read_bytes())
            except (OSError, ValueError):
                continue
            records[record.key] = record
        return records

    def save(self, record: ServiceRecord) -> None:
        """Keep `record` over restarts."""
        write_atomically(self._path(record.key), record.model_dump_json(by_alias=True).encode())

    def delete(self, key: str) -> None:
        """Forget the record."""
        self._path(key).unlink(missing_ok=True)

    def load_gateway(self) -> LLMGateway:
        """The gateway as it was last asked for, or the implied one."""
        try:
            return LLMGateway.model_validate_json((self.folder / "gateway.json").read_bytes())
        except (OSError, ValueError):
            return LLMGateway()

    def save_gateway(self, gateway: LLMGateway) -> None:
        """Keep `gateway` over restarts."""
        write_atomically(self.folder / "gateway.json", gateway.model_dump_json(by_alias=True).encode())

    def delete_gateway(self) -> None:
        """The next gateway is the implied one again."""
        (self.folder / "gateway.json").unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"service-{key.replace('/', '.')}.json"
