"""Limits of a key: exact over any mix of requests, kept over a kill of the picker, and said in OpenAI's words."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.gateway import KeyLimits
from pilotage.gateway.accounts import DEFAULT_OUTPUT_TOKENS, Account, Ledger, Refusal, as_openai_duration
from pilotage.gateway.requests import Parsed


def parsed(prompt_tokens: int = 10, output: int | None = 10) -> Parsed:
    return Parsed("m", False, prompt_tokens * 4, (), "", output)


def account(**limits: int) -> Account:
    return Account("a" * 12, KeyLimits(**limits), ledger=Ledger(None), now_s=0.0)


def test_requests_a_minute_come_at_once_and_then_evenly():
    mine = account(requests_per_minute=6)
    for _ in range(6):
        mine.require(parsed(), running=0, now_s=0)
        mine.admit(0, now_s=0)
    with pytest.raises(Refusal) as refused:
        mine.require(parsed(), running=0, now_s=0)
    assert (refused.value.limit, refused.value.after_s) == ("requests", pytest.approx(10))
    mine.require(parsed(), running=0, now_s=10)
    mine.admit(0, now_s=10)
    with pytest.raises(Refusal):
        mine.require(parsed(), running=0, now_s=10)


def test_tokens_are_reserved_and_settled_by_what_was_used():
    mine = account(tokens_per_minute=1_000)
    reserved = mine.require(parsed(100, 500), running=0, now_s=0)
    assert reserved == 600
    mine.admit(reserved, now_s=0)
    with pytest.raises(Refusal) as refused:
        mine.require(parsed(100, 500), running=0, now_s=0)
    assert refused.value.limit == "tokens"
    mine.settle(reserved=reserved, used=130, now_s=0)
    assert mine.require(parsed(100, 700), running=0, now_s=0) == 800
    # More than was reserved is a debt.
    mine.admit(800, now_s=0)
    mine.settle(reserved=800, used=1_870, now_s=0)
    with pytest.raises(Refusal) as refused:
        mine.require(parsed(0, 0), running=0, now_s=59)
    assert refused.value.after_s == pytest.approx(1, abs=0.01)


def test_a_request_without_a_limit_of_its_own_reserves_a_usual_answer_and_a_huge_one_a_minute():
    mine = account(tokens_per_minute=10_000)
    assert mine.require(parsed(100, None), running=0, now_s=0) == 100 + DEFAULT_OUTPUT_TOKENS
    assert mine.require(parsed(100, 1_000_000), running=0, now_s=0) == 10_000
    with pytest.raises(Refusal) as refused:
        mine.require(parsed(10_001), running=0, now_s=0)
    assert refused.value.after_s is None


def test_what_waits_counts_against_every_limit():
    mine = account(concurrent_requests=3, requests_per_minute=100, tokens_per_minute=10_000)
    mine.wait(mine.require(parsed(), running=2, now_s=0))
    with pytest.raises(Refusal, match="3 requests of this key are running or waiting"):
        mine.require(parsed(), running=2, now_s=0)
    mine.wait_no_more(20)
    mine.require(parsed(), running=2, now_s=0)


def test_headers_are_those_of_openai():
    mine = account(requests_per_minute=60, tokens_per_minute=1_000)
    mine.admit(400, now_s=0)
    assert dict(mine.headers(now_s=0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "24s",
    }
    assert account(concurrent_requests=1).headers(now_s=0) == []
    assert [as_openai_duration(s) for s in (0, 0.0195, 1, 59.2, 360)] == ["0ms", "20ms", "1s", "1m0s", "6m0s"]


def test_changed_limits_forgive_nothing():
    mine = account(requests_per_minute=10)
    for _ in range(10):
        mine.admit(0, now_s=0)
    mine.use(KeyLimits(requests_per_minute=12), now_s=0)
    mine.require(parsed(), running=0, now_s=0)
    mine.admit(0, now_s=0)
    mine.admit(0, now_s=0)
    with pytest.raises(Refusal):
        mine.require(parsed(), running=0, now_s=0)


steps = st.lists(
    st.tuples(st.floats(0, 20), st.integers(0, 50), st.integers(0, 80), st.integers(0, 200)), min_size=1, max_size=80
)


@given(steps, st.integers(1, 30), st.integers(50, 500))
def test_no_minute_admits_more_than_the_limits(steps: list[tuple[float, int, int, int]], requests: int, tokens: int):
    """Over any stretch, admitted requests and used tokens stay within a bucket's worth and what flowed in."""
    mine = account(requests_per_minute=requests, tokens_per_minute=tokens)
    now_s, admitted, used_total, largest_over = 0.0, 0, 0, 0
    for pause_s, prompt, output, used in steps:
        now_s += pause_s
        try:
            reserved = mine.require(parsed(prompt, output), running=0, now_s=now_s)
        except Refusal:
            continue
        mine.admit(reserved, now_s=now_s)
        mine.settle(reserved=reserved, used=used, now_s=now_s)
        admitted += 1
        used_total += used
        # One answer may overrun what was reserved for it; the next pays.
        largest_over = max(largest_over, used - reserved)
        assert admitted <= requests * (1 + now_s / 60) + 1e-6
        assert used_total <= tokens * (1 + now_s / 60) + max(0, largest_over) + 1e-6


KILLED = """
import os, signal, sys
from pathlib import Path
from pilotage.gateway import KeyLimits
from pilotage.gateway.accounts import Account, Ledger

mine = Account("a" * 12, KeyLimits(requests_per_minute=10, tokens_per_minute=1000), ledger=Ledger(Path(sys.argv[1])), now_s=5.0)
for _ in range(7):
    mine.admit(100, now_s=5.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_used_outlives_a_kill(tmp_path: Path):
    path = tmp_path / "ledger"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    limits = KeyLimits(requests_per_minute=10, tokens_per_minute=1_000)
    ledger = Ledger(path)
    mine = Account("a" * 12, limits, ledger=ledger, now_s=5.0)
    assert dict(mine.headers(now_s=5.0))["x-ratelimit-remaining-requests"] == "3"
    assert dict(mine.headers(now_s=5.0))["x-ratelimit-remaining-tokens"] == "300"
    # After a reboot the clock begins anew.
    assert (
        dict(Account("a" * 12, limits, ledger=Ledger(path), now_s=1.0).headers(now_s=1.0))[
            "x-ratelimit-remaining-requests"
        ]
        == "10"
    )
    ledger.keep_only([])
    assert Ledger(path).place("b" * 12)[1] is None
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_ledger_that_is_cut_short_or_full_of_rubbish_is_begun_anew(tmp_path: Path):
    path = tmp_path / "ledger"
    path.write_bytes(b"short")
    Ledger(path).keep(Ledger(path).place("a" * 12)[0], "a" * 12, 1, 2, 3)
    path.write_bytes(b"\xff" * path.stat().st_size)
    mine = Account("a" * 12, KeyLimits(requests_per_minute=10), ledger=Ledger(path), now_s=1.0)
    mine.require(parsed(), running=0, now_s=1.0)


def test_a_disk_without_room_costs_the_memory_of_limits_and_not_the_picker(tmp_path: Path):
    full = tmp_path / "a-folder-in-its-place"
    full.mkdir()
    mine = Account("a" * 12, KeyLimits(requests_per_minute=1), ledger=Ledger(full), now_s=0.0)
    mine.admit(0, now_s=0.0)
    with pytest.raises(Refusal):
        mine.require(parsed(), running=0, now_s=0.0)


def test_a_place_is_one_accounts_alone(tmp_path: Path):
    """A key that never asked for anything goes, and its place is given to another, once."""
    ledger, limits = Ledger(tmp_path / "ledger"), KeyLimits(requests_per_minute=60)
    Account("a" * 12, limits, ledger=ledger, now_s=0.0).close()
    second = Account("b" * 12, limits, ledger=ledger, now_s=0.0)
    for _ in range(60):
        second.admit(0, now_s=0.0)
    ledger.keep_only(["b" * 12])
    third = Account("c" * 12, limits, ledger=ledger, now_s=0.0)
    third.admit(0, now_s=0.0)
    again = Account("b" * 12, limits, ledger=Ledger(tmp_path / "ledger"), now_s=0.0)
    with pytest.raises(Refusal):
        again.require(parsed(), running=0, now_s=0.0)


def test_an_account_that_is_gone_writes_into_no_other(tmp_path: Path):
    ledger, limits = Ledger(tmp_path / "ledger"), KeyLimits(requests_per_minute=60)
    gone = Account("a" * 12, limits, ledger=ledger, now_s=0.0)
    gone.admit(0, now_s=0.0)
    gone.close()
    Account("b" * 12, limits, ledger=ledger, now_s=0.0).admit(0, now_s=0.0)
    gone.admit(0, now_s=0.0)
    assert Ledger(tmp_path / "ledger").place("b" * 12)[1] == (59.0, 0.0, 0.0)
