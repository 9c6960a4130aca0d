"""A wrong file is answered with every mistake at once, each with its line and the nearest valid name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotage.api import (
    EngineType,
    InvalidResources,
    LLMGateway,
    LLMService,
    Target,
    load_documents,
    problems_on,
    read_files,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

GOOD = """\
apiVersion: pilotage.io/v1alpha1
kind: LLMService
metadata:
  name: chat
spec:
  model:
    source: hf://Qwen/Qwen3-8B-GGUF#Qwen3-8B-Q4_K_M.gguf
  engine:
    type: LlamaCpp
"""


def problems(text: str) -> list[tuple[int, str, str, str]]:
    with pytest.raises(InvalidResources) as raised:
        load_documents([("chat.yaml", text)])
    return [(p.line, p.field, p.message, p.hint) for p in raised.value.problems]


def test_a_good_file_gives_its_resource_with_defaults_filled_in():
    (document,) = load_documents([("chat.yaml", GOOD)])
    service = document.resource
    assert isinstance(service, LLMService)
    assert service.spec.engine.type is EngineType.LLAMA_CPP
    assert service.spec.lifecycle.drain_seconds == 600
    assert service.served_names == ["chat"]
    assert service.key == "default/chat"
    assert service.spec.replicas is None
    assert service.replicas == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid_here_and_in_a_cluster(path: Path):
    documents = load_documents(read_files([path]))
    assert documents
    for target in Target:
        assert problems_on(target, documents) == []


def test_all_mistakes_of_all_documents_come_at_once_with_their_lines():
    text = """\
apiVersion: pilotage.io/v1alpha1
kind: LLMService
metadata:
  name: Chat
spec:
  modle:
    source: x
  replicas: two
  engine:
    type: LlamaCPP
---
apiVersion: pilotage.io/v1alpha1
kind: LLMGateway
spec:
  listener:
    prot: 80
    address: localhost
"""
    found = problems(text)
    assert (4, "metadata.name", "'Chat' does not match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "") in found
    assert (6, "spec.modle", "unknown field", "did you mean model?") in found
    assert (5, "spec.model", "required field is missing", "") in found
    assert (8, "spec.replicas", "expected a valid integer, found 'two'", "") in found
    assert (
        10,
        "spec.engine.type",
        "expected 'LlamaCpp', 'VLLM', 'SGLang' or 'Simulated', found 'LlamaCPP'",
        "did you mean LlamaCpp?",
    ) in found
    assert (16, "spec.listener.prot", "unknown field", "did you mean port?") in found
    assert (17, "spec.listener.address", "'localhost' is no IP address", "") in found
    assert len(found) == 7


def test_a_wrong_source_is_answered_with_the_form_expected():
    found = problems(GOOD.replace("hf://Qwen/Qwen3-8B-GGUF#Qwen3-8B-Q4_K_M.gguf", "hff://Qwen/Qwen3-8B"))
    assert found == [
        (7, "spec.model.source", "'hff://Qwen/Qwen3-8B' is no model source", "write hf://OWNER/NAME[@REVISION][#FILE]")
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "the file holds no resource"),
        ("a: [1", 1, "expected ',' or ']'"),
        ("- 1\n- 2\n", 1, "expected a resource"),
        ("kind: LLMServcie\n", 1, "'LLMServcie' is no kind known here"),
        ("apiVersion: v1\n", 1, "required field is missing"),
        ("kind: LLMService\nkind: LLMService\n", 2, "duplicate key"),
    ],
)
def test_what_is_no_resource_is_said_in_one_line(text: str, line: int, said: str):
    found = problems(text)
    assert said in found[0][2]
    assert found[0][0] >= line


def test_a_missing_version_is_named():
    assert problems(GOOD.replace("apiVersion: pilotage.io/v1alpha1\n", ""))[0][1:3] == (
        "apiVersion",
        "required field is missing",
    )


def test_the_same_name_twice_is_refused_over_files():
    with pytest.raises(InvalidResources) as raised:
        load_documents([("a.yaml", GOOD), ("b.yaml", GOOD)])
    (problem,) = raised.value.problems
    assert (
        str(problem)
        == "b.yaml:4: metadata.name: 'chat' stands in a.yaml:4 already (give each object a name of its own)"
    )


def test_what_only_one_place_can_give_is_said_for_the_other():
    documents = load_documents(
        [("f.yaml", GOOD.replace("hf://Qwen/Qwen3-8B-GGUF#Qwen3-8B-Q4_K_M.gguf", "file:///m.gguf"))]
    )
    assert problems_on(Target.LOCAL, documents) == []
    (problem,) = problems_on(Target.CLUSTER, documents)
    assert (problem.line, problem.field) == (7, "spec.model.source")


def test_beyond_loopback_every_service_needs_keys():
    gateway = "---\napiVersion: pilotage.io/v1alpha1\nkind: LLMGateway\nspec: {listener: {address: 0.0.0.0}}\n"
    documents = load_documents([("f.yaml", GOOD + gateway)])
    (problem,) = problems_on(Target.LOCAL, documents)
    assert problem.field == "spec.access"


def test_an_object_written_out_reads_back_the_same():
    (document,) = load_documents([("chat.yaml", GOOD)])
    service = document.resource
    assert isinstance(service, LLMService)
    assert LLMService.model_validate_json(service.model_dump_json(by_alias=True)) == service


@given(st.text(max_size=300))
def test_no_text_makes_anything_but_problems_or_documents(text: str):
    try:
        documents = load_documents([("any.yaml", text)])
    except InvalidResources as error:
        assert error.problems
        assert all(p.line >= 1 for p in error.problems)
    else:
        assert all(isinstance(d.resource, LLMService | LLMGateway) for d in documents)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["metadata", "spec", "model", "engine", "lifecycle", "access"]), json_like)
def test_no_value_anywhere_makes_a_traceback(field: str, value: object):
    import io

    from ruamel.yaml import YAML

    content: dict[str, object] = {
        "apiVersion": "pilotage.io/v1alpha1", "kind": "LLMService", "metadata": {"name": "chat"},
        "spec": {"model": {"source": "file:///m.gguf"}},
    }  # fmt: skip
    if field in ("metadata", "spec"):
        content[field] = value
    else:
        content["spec"][field] = value  # type: ignore[index]
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(content, text)
    try:
        load_documents([("any.yaml", text.getvalue())])
    except InvalidResources as error:
        assert error.problems
