"""What is read of a body, here and in the process that reads large ones."""

import json
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.gateway import large_bodies
from pilotage.gateway.large_bodies import LargeBodies
from pilotage.gateway.requests import BLOCK_BYTES, MOST_BLOCKS, Parsed, Unreadable, parse


def body(**more: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}).encode()


def read(data: bytes) -> Parsed:
    found = parse(data, "messages")
    assert isinstance(found, Parsed), found
    return found


def test_the_last_of_equal_keys_counts_as_it_does_in_engines():
    assert read(b'{"model": "a", "mod\\u0065l": "b"}').model == "b"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 7, "max_tokens": 5}, 7), ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": "5"}, None), ({"max_tokens": -1}, None), ({"max_tokens": True}, None), ({"max_tokens": 5, "n": 0}, 5),
        ({"max_tokens": 1e30}, None), ({"max_tokens": 2**64 - 1, "n": 2}, 2**31),
    ],
)  # fmt: skip
def test_tokens_that_a_request_allows(fields: dict[str, object], tokens: int | None):
    assert read(body(**fields)).max_output_tokens == tokens


@pytest.mark.parametrize(
    "data", [b"[" * 500_000, b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"model":"\xff"}',
             b'{"model":"m","messages":["\xff\xfe"]}', b'{"model":"m"} x', b'{"model":NaN}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_no_json_is_said_to_be_none(data: bytes):
    found = parse(data, "messages")
    assert isinstance(found, Unreadable)
    assert found.code == "invalid_json"


def test_a_chain_is_one_of_prefixes():
    long, longer = "x" * 3 * BLOCK_BYTES, "x" * 5 * BLOCK_BYTES
    one, two = (read(json.dumps({"model": "m", "messages": text}).encode()).chain for text in (long, longer))
    assert two[: len(one)] == one
    assert len(set(two)) == len(two)
    other = read(json.dumps({"model": "m", "messages": "y" + longer}).encode()).chain
    assert not set(other) & set(two)
    endless = read(json.dumps({"model": "m", "messages": "x" * (MOST_BLOCKS + 50) * BLOCK_BYTES}).encode())
    assert len(endless.chain) == MOST_BLOCKS


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9), st.text())
def test_valid_json_is_read_whatever_its_fields_hold(value: object, model: str):
    found = parse(
        json.dumps({"model": model or "m", "messages": value, "stream": value, "n": value}).encode(), "messages"
    )
    assert isinstance(found, Parsed) or found.code == "invalid_model"


async def test_large_bodies_are_read_elsewhere_and_alike():
    reader = LargeBodies()
    try:
        bodies = [body(messages=str(n) * 600_000) for n in range(3)] + [b"{", b"[]"]
        for data in bodies:
            assert await reader.parse([data[:1], data[1:]], "messages") == parse(data, "messages")
    finally:
        await reader.stop()


async def test_a_reader_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(large_bodies, "DEADLINE_S", 0.5)
    reader = LargeBodies()
    try:
        data = body(messages="x" * 600_000)
        await reader.parse([data], "messages")
        assert reader._process
        hung = reader._process
        os.kill(hung.pid, signal.SIGSTOP)
        assert await reader.parse([data], "messages") == parse(data, "messages")
        assert await hung.wait() == -signal.SIGKILL
    finally:
        await reader.stop()


async def test_a_reader_that_is_killed_is_replaced():
    reader = LargeBodies()
    try:
        data = body(messages="x" * 600_000)
        await reader.parse([data[:1], data[1:]], "messages")
        assert reader._process
        os.kill(reader._process.pid, signal.SIGKILL)
        assert await reader.parse([data[:1], data[1:]], "messages") == parse(data, "messages")
    finally:
        await reader.stop()
