"""Files of a hub that speaks the real protocol to the real client."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotage.catalog import parse_source
from pilotage.clock import SystemClock
from pilotage.weights import (
    AccessDenied,
    DigestMismatch,
    Fetched,
    NotFound,
    RateLimited,
    SourceUnreachable,
    TokenNeeded,
    WeightsError,
    WeightsStore,
    ensure,
)
from tests.weights.servers import Hub, serving

DATA = b"GGUF" + bytes(range(256)) * 2000
SECRET = "hf_secret-token-1234"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub({"tiny.Q4.gguf": DATA, "README.md": b"hello"})
    with serving(found.handle) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found


def fetch(root: Path, source: str = "hf://own/tiny", token: str | None = None) -> Fetched:
    return ensure(parse_source(source), store=WeightsStore(root), clock=SystemClock(), token=token)


def test_the_only_gguf_file_is_found_and_its_commit_is_kept(tmp_path: Path, hub: Hub):
    told: list[int] = []
    found = ensure(
        parse_source("hf://own/tiny"),
        store=WeightsStore(tmp_path),
        clock=SystemClock(),
        progress=lambda p: told.append(p.done_bytes),
    )
    assert found.path.read_bytes() == DATA
    assert found.resolved == f"hf://own/tiny@{'c' * 40}#tiny.Q4.gguf"
    assert told
    assert told[-1] == len(DATA)
    hub.refuse = (500, "")
    assert fetch(tmp_path).was_cached


def test_a_token_reaches_the_hub_and_nothing_else(tmp_path: Path, hub: Hub):
    fetch(tmp_path, token=SECRET)
    assert f"Bearer {SECRET}" in hub.tokens
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "token", "kind"),
    [
        (401, "RepoNotFound", None, TokenNeeded),
        (401, "GatedRepo", None, TokenNeeded),
        (403, "GatedRepo", SECRET, AccessDenied),
        (403, "", SECRET, AccessDenied),
        (404, "RepoNotFound", SECRET, NotFound),
        (404, "RevisionNotFound", None, NotFound),
        (429, "", None, RateLimited),
        (500, "", None, SourceUnreachable),
    ],
)
def test_each_refusal_has_its_own_error_without_the_token(
    tmp_path: Path, hub: Hub, status: int, code: str, token: str | None, kind: type[WeightsError]
):
    hub.refuse = (status, code)
    with pytest.raises(WeightsError) as raised:
        fetch(tmp_path, "hf://own/tiny@main", token=token)
    assert type(raised.value) is kind, raised.value
    assert raised.value.hint
    assert SECRET not in f"{raised.value} {raised.value.hint}"


def test_a_repository_with_a_choice_names_it(tmp_path: Path, hub: Hub):
    hub.files["tiny.Q8.gguf"] = DATA
    with pytest.raises(NotFound) as raised:
        fetch(tmp_path)
    assert "tiny.Q4.gguf, tiny.Q8.gguf" in raised.value.hint
    assert fetch(tmp_path, "hf://own/tiny#tiny.Q8.gguf").path.name == "tiny.Q8.gguf"
    with pytest.raises(NotFound, match=r"no other\.gguf"):
        fetch(tmp_path, "hf://own/tiny#other.gguf")


def test_a_wrong_digest_is_thrown_away(tmp_path: Path, hub: Hub):
    hub.wrong_digest = True
    with pytest.raises(DigestMismatch):
        fetch(tmp_path)
    assert WeightsStore(tmp_path).entries() == []


def test_a_hub_that_is_not_there_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceUnreachable):
        fetch(tmp_path)


def test_fetching_prints_nothing(tmp_path: Path, hub: Hub):
    code = "import sys; from pathlib import Path; from tests.weights.test_hub import fetch; fetch(Path(sys.argv[1]), token='hf_x')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "hf_x" not in done.stderr


def test_a_safetensors_model_comes_with_all_that_belongs_to_it(tmp_path: Path, hub: Hub):
    wanted = {"config.json": b"{}", "model-00001-of-00002.safetensors": DATA, "model-00002-of-00002.safetensors": DATA[:999],
              "tokenizer.json": b"{}", "sub/extra.json": b"[]"}  # fmt: skip
    hub.files = {**wanted, "pytorch_model.bin": b"the same once more", ".gitattributes": b""}
    told: list[int] = []
    found = ensure(
        parse_source("hf://own/tiny"), store=WeightsStore(tmp_path), clock=SystemClock(),
        progress=lambda p: told.append(p.done_bytes),
    )  # fmt: skip
    assert {str(p.relative_to(found.path)): p.read_bytes() for p in found.path.rglob("*") if p.is_file()} == wanted
    assert max(told) <= sum(map(len, wanted.values()))
    assert told == sorted(told)
