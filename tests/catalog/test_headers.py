from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotage.catalog import Attention, HeaderError, read_gguf_header, read_safetensors_header
from tests.catalog.files import gguf, safetensors


def test_a_gguf_header_says_what_memory_planning_needs(tmp_path: Path):
    facts = read_gguf_header(gguf(tmp_path / "m.gguf"))
    assert facts.attention == Attention(layers=4, kv_heads=2, key_head_dim=16, value_head_dim=16)
    assert (facts.name, facts.trained_context_tokens) == ("Tiny", 2048)
    assert facts.weights_bytes == (tmp_path / "m.gguf").stat().st_size


def test_stated_head_sizes_go_before_derived_ones(tmp_path: Path):
    path = gguf(tmp_path / "m.gguf", llama__attention__key_length=128, llama__attention__value_length=64)
    attention = read_gguf_header(path).attention
    assert attention
    assert (attention.key_head_dim, attention.value_head_dim) == (128, 64)


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGUF", b"GGUF\x03\0\0\0", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_gguf_file_is_said(tmp_path: Path, data: bytes):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(HeaderError):
        read_gguf_header(tmp_path / "m.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_gguf_header_never_makes_anything_but_a_header_error(tmp_path: Path, position: int, byte: int):
    path = gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(data)
    try:
        read_gguf_header(path)
    except HeaderError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 300))
def test_a_cut_off_gguf_header_never_makes_anything_but_a_header_error(tmp_path: Path, length: int):
    path = gguf(tmp_path / "m.gguf", payload_bytes=0)
    path.write_bytes(path.read_bytes()[:length])
    try:
        read_gguf_header(path)
    except HeaderError:
        pass


def test_a_safetensors_file_is_whole_or_refused(tmp_path: Path):
    path = safetensors(tmp_path / "m.safetensors")
    assert read_safetensors_header(path).weights_bytes == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HeaderError, match="cut off"):
        read_safetensors_header(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(HeaderError):
        read_safetensors_header(path)
