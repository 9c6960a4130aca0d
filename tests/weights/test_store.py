from pathlib import Path, PurePosixPath

import pytest

from pilotage.weights import CacheEntry, WeightsStore
from pilotage.weights.store import StoredFile


def add(store: WeightsStore, source: str, data: bytes, *, used_s: float) -> CacheEntry:
    entry_id = store.id_of(source)
    temporary = store.partial(entry_id) / "file"
    temporary.write_bytes(data)
    file: StoredFile = store.verify(temporary, entry_id=entry_id, path=PurePosixPath("m.gguf"), expected_sha256=None)
    entry = CacheEntry(id=entry_id, source=source, resolved=source, files=(file,), fetched_s=used_s, used_s=used_s)
    store.finish(entry)
    store.touch(entry, now_s=used_s)
    return entry


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path)


def test_the_least_recently_used_go_first_until_the_rest_fits(store: WeightsStore):
    for number in range(4):
        add(store, f"s{number}", bytes([number]) * 100, used_s=1000.0 + number)
    removed = store.prune(budget_bytes=250)
    assert [entry.source for entry in removed] == ["s0", "s1"]
    assert {entry.source for entry in store.entries()} == {"s2", "s3"}
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == 2


def test_what_is_in_use_is_spared(store: WeightsStore):
    entry = add(store, "used", b"a" * 100, used_s=1)
    add(store, "idle", b"b" * 100, used_s=2)
    with store.hold(entry.id):
        assert [e.source for e in store.prune(budget_bytes=0)] == ["idle"]
        assert store.entries()[0].in_use
        assert (store.tree(entry) / "m.gguf").read_bytes() == b"a" * 100
    assert [e.source for e in store.prune(budget_bytes=0)] == ["used"]


def test_one_content_of_two_sources_lies_there_once_and_goes_with_the_last(store: WeightsStore):
    first = add(store, "a", b"same" * 50, used_s=1)
    second = add(store, "b", b"same" * 50, used_s=2)
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == 1
    store.prune(budget_bytes=200)
    assert not store.tree(first).exists()
    assert (store.tree(second) / "m.gguf").read_bytes() == b"same" * 50
    store.prune(budget_bytes=0)
    assert not list((store.root / "blobs" / "sha256").iterdir())


def test_an_entry_without_its_files_is_no_entry(store: WeightsStore):
    entry = add(store, "a", b"x", used_s=1)
    (store.tree(entry) / "m.gguf").unlink()
    assert store.find("a") is None


def test_a_damaged_manifest_is_no_entry(store: WeightsStore):
    entry = add(store, "a", b"x", used_s=1)
    (store.root / "manifests" / f"{entry.id}.json").write_text("{")
    assert store.find("a") is None
    assert store.entries() == []
