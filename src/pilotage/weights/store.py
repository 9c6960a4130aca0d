"""The machine's store of weights: each file once, under its digest.

    blobs/sha256/<digest>            a file's bytes, read-only
    manifests/<id>.json              what a source became: written last, so it is the ready marker
    trees/<id>/<path>                the files under the names that engines want, as hard links to blobs
    partial/<id>/                    what is being fetched; kept over crashes so that a fetch goes on
    store.lock                       held while entries appear or vanish
    locks/<id>.lock                  held by the one process that fetches

A manifest is in use while any process holds a shared lock on it, so a crash frees it without anyone's help.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import orjson
from filelock import FileLock, Timeout

from pilotage.weights.problems import DigestMismatch, NotEnoughDisk, UnsafeName

# Left free beside what is fetched: a full disk breaks more than a fetch.
SPARE_BYTES = 256 * 1024 * 1024
COPY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a source, and the digest under which it lies."""

    path: PurePosixPath
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """What one source became. `resolved` is the source with everything floating fixed, such as a commit."""

    id: str
    source: str
    resolved: str
    files: tuple[StoredFile, ...]
    fetched_s: float
    used_s: float
    in_use: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class WeightsStore:
    """The store in `root`, shared by all processes of the machine that may write there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def id_of(self, source: str) -> str:
        """The entry's id for `source`."""
        return hashlib.sha256(source.encode()).hexdigest()[:24]

    def find(self, source: str) -> CacheEntry | None:
        """What `source` became, if it is all here."""
        return self._read(self._manifest(self.id_of(source)))

    def entries(self) -> list[CacheEntry]:
        """All entries, most recently used first."""
        found = (self._read(path) for path in (self.root / "manifests").glob("*.json"))
        return sorted((entry for entry in found if entry), key=lambda entry: entry.used_s, reverse=True)

    def tree(self, entry: CacheEntry) -> Path:
        """The folder that holds the entry's files by name."""
        return self.root / "trees" / entry.id

    def partial(self, entry_id: str) -> Path:
        """The folder for what is being fetched."""
        folder = self.root / "partial" / entry_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def fetching(self, entry_id: str) -> Iterator[None]:
        """Only one process at a time is in here for one entry; others wait."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{entry_id}.lock"):
            yield

    def require_space(self, needed_bytes: int) -> None:
        """Raises NotEnoughDisk unless `needed_bytes` and a spare fit."""
        self.root.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < needed_bytes + SPARE_BYTES:
            raise NotEnoughDisk(str(self.root), needed_bytes=needed_bytes + SPARE_BYTES, free_bytes=free_bytes)

    def verify(self, temporary: Path, *, entry_id: str, path: PurePosixPath, expected_sha256: str | None) -> StoredFile:
        """Put `temporary` by for `finish`. Raises DigestMismatch, and deletes it, when it is not what was promised."""
        if path.is_absolute() or ".." in path.parts or not path.parts:
            # Names come from other people's servers.
            raise UnsafeName(str(path))
        sha256, size_bytes = digest_of(temporary)
        if expected_sha256 and sha256 != expected_sha256:
            temporary.unlink()
            raise DigestMismatch(path.name, expected=expected_sha256, found=sha256)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        verified = self._verified(entry_id, sha256)
        verified.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(verified)
        return StoredFile(path=path, sha256=sha256, size_bytes=size_bytes)

    def finish(self, entry: CacheEntry) -> CacheEntry:
        """Make `entry` ready out of verified files: blobs and tree first, the manifest last."""
        with self._changing():
            tree = self.tree(entry)
            shutil.rmtree(tree, ignore_errors=True)
            for file in entry.files:
                blob = self._blob(file.sha256)
                blob.parent.mkdir(parents=True, exist_ok=True)
                verified = self._verified(entry.id, file.sha256)
                if verified.exists():
                    verified.chmod(0o444)
                    verified.replace(blob)
                link = tree / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(blob, link)
            self._write(entry)
        shutil.rmtree(self.root / "partial" / entry.id, ignore_errors=True)
        return entry

    def touch(self, entry: CacheEntry, *, now_s: float) -> None:
        """The entry is used now: it is the last to be pruned."""
        try:
            os.utime(self._manifest(entry.id), (now_s, now_s))
        except FileNotFoundError:
            pass

    def hold(self, entry_id: str) -> IO[bytes]:
        """Keep the entry from being pruned until the file that comes back is closed, or its process is gone."""
        with self._changing():
            file = self._manifest(entry_id).open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def prune(self, *, budget_bytes: int) -> list[CacheEntry]:
        """Remove entries, least recently used first, until the rest fits `budget_bytes`. What is in use is spared."""
        removed = []
        with self._changing():
            entries = self.entries()
            total_bytes = sum(entry.size_bytes for entry in entries)
            for entry in reversed(entries):
                if total_bytes <= budget_bytes:
                    break
                if not entry.in_use:
                    self._remove(entry)
                    removed.append(entry)
                    total_bytes -= entry.size_bytes
            self._drop_unreferenced()
            if budget_bytes == 0:
                self._drop_abandoned()
        return removed

    def _remove(self, entry: CacheEntry) -> None:
        self._manifest(entry.id).unlink()
        shutil.rmtree(self.tree(entry), ignore_errors=True)
        shutil.rmtree(self.root / "partial" / entry.id, ignore_errors=True)

    def _drop_unreferenced(self) -> None:
        wanted = {file.sha256 for entry in self.entries() for file in entry.files}
        for blob in (self.root / "blobs" / "sha256").glob("*"):
            if blob.name not in wanted:
                blob.unlink(missing_ok=True)

    def _drop_abandoned(self) -> None:
        """Parts of fetches that nobody goes on with."""
        for folder in (self.root / "partial").glob("*"):
            try:
                with FileLock(self.root / "locks" / f"{folder.name}.lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                continue

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "store.lock"):
            yield

    def _verified(self, entry_id: str, sha256: str) -> Path:
        return self.partial(entry_id) / "verified" / sha256

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256

    def _manifest(self, entry_id: str) -> Path:
        return self.root / "manifests" / f"{entry_id}.json"

    def _read(self, path: Path) -> CacheEntry | None:
        try:
            raw = orjson.loads(path.read_bytes())
            used_s = path.stat().st_mtime
            in_use = self._is_in_use(path)
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        files = tuple(
            StoredFile(path=PurePosixPath(f["path"]), sha256=f["sha256"], size_bytes=f["size_bytes"])
            for f in raw["files"]
        )
        entry = CacheEntry(
            id=path.stem,
            source=raw["source"],
            resolved=raw["resolved"],
            files=files,
            fetched_s=raw["fetched_s"],
            used_s=used_s,
            in_use=in_use,
        )
        complete = all((self.tree(entry) / file.path).exists() for file in files)
        return entry if complete else None

    @staticmethod
    def _is_in_use(manifest: Path) -> bool:
        with manifest.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _write(self, entry: CacheEntry) -> None:
        manifest = self._manifest(entry.id)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        temporary = manifest.with_name(f".{entry.id}.{os.getpid()}")
        files = [{"path": str(f.path), "sha256": f.sha256, "size_bytes": f.size_bytes} for f in entry.files]
        said = {"source": entry.source, "resolved": entry.resolved, "files": files, "fetched_s": entry.fetched_s}
        with temporary.open("wb") as file:
            file.write(orjson.dumps(said))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(manifest)


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size in bytes of the file at `path`."""
    hasher, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(COPY_BYTES):
            hasher.update(data)
            size_bytes += len(data)
    return hasher.hexdigest(), size_bytes
