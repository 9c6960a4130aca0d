"""Files of a source that are fetched over HTTP, some at once."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Event, Lock

from pilotage.weights.downloads import RequestOf, download
from pilotage.weights.store import StoredFile, WeightsStore

# More connections fill no network that four don't, and a registry or bucket counts them.
PARALLEL_FILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a source. `request` gives a URL and headers anew for each try, since signatures and tokens end.

    `version` changes when the bytes do, where no digest says so: parts of two versions must not be put together.
    """

    path: PurePosixPath
    size_bytes: int | None
    sha256: str | None
    request: RequestOf
    version: str = ""

    @property
    def part(self) -> str:
        """The name of what has come of it."""
        return "part-" + hashlib.sha256(f"{self.path}\n{self.sha256}\n{self.version}".encode()).hexdigest()[:16]


class _OtherFailed(Exception):
    """Another file of the source can't be had, so this one is not gone on with."""


def fetch_files(
    files: Sequence[RemoteFile],
    *,
    shown_as: str,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[StoredFile, ...]:
    """Bring all files into the store, verified; in the order of their paths. Raises a WeightsError.

    What has come stays when one of them fails, for the next try.
    """
    sizes = [file.size_bytes for file in files]
    total_bytes = sum(size or 0 for size in sizes) if None not in sizes else None
    folder = store.partial(entry_id)
    lock, failed, done_bytes = Lock(), Event(), dict.fromkeys(range(len(files)), 0)
    store.require_space((total_bytes or 0) - sum(path.stat().st_size for path in folder.glob("part-*")))

    def fetch(number: int, file: RemoteFile) -> None:
        def report(file_done_bytes: int, file_size_bytes: int | None) -> None:
            if failed.is_set():
                raise _OtherFailed
            with lock:
                done_bytes[number] = file_done_bytes
                progress(sum(done_bytes.values()), total_bytes if len(files) > 1 else file_size_bytes)

        target = folder / file.part
        if file.size_bytes is not None and target.exists() and target.stat().st_size == file.size_bytes:
            report(file.size_bytes, file.size_bytes)
            return
        download(
            file.request,
            target,
            shown_as=f"{shown_as} ({file.path})" if len(files) > 1 else shown_as,
            before=store.require_space,
            progress=report,
        )

    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
        running = [pool.submit(fetch, number, file) for number, file in enumerate(files)]
        finished, left = wait(running, return_when=FIRST_EXCEPTION)
        failed.set()
        for future in left:
            # Those that have not begun never do; those that run end at their next piece.
            future.cancel()
        for future in finished:
            future.result()
    # Once all are here: until then a part keeps its name, and the next try finds it.
    stored = [
        store.verify(folder / file.part, entry_id=entry_id, path=file.path, expected_sha256=file.sha256)
        for file in files
    ]
    return tuple(sorted(stored, key=lambda file: file.path))
