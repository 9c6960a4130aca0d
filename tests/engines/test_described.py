"""vLLM and SGLang are described as data: the command lines, word by word, and what each description must hold."""

import json
import struct
from pathlib import Path

import pytest

from pilotage.api import EngineType
from pilotage.catalog import HeaderError, read_model_folder
from pilotage.engines import KEY_VARIABLE, InvalidEngineArgs, adapter_for
from pilotage.engines.described import Described

GOLDEN = {
    EngineType.VLLM: (
        "vllm serve /models/qwen --served-model-name=chat --host=127.0.0.1 --port=8000 --max-model-len=4096 "
        "--enable-force-include-usage --enable-prompt-tokens-details --shutdown-timeout=30 --disable-fastapi-docs "
        "--max-num-seqs=64 --tensor-parallel-size=2"
    ),
    EngineType.SGLANG: (
        "python3 -m sglang.launch_server --model-path=/models/qwen --served-model-name=chat --host=127.0.0.1 --port=8000 "
        "--context-length=4096 --enable-metrics --enable-cache-report --stream-response-default-include-usage "
        "--max-running-requests=64 --api-key=$(PILOTAGE_ENGINE_KEY) --tp-size=2"
    ),
}
ARGS = {
    EngineType.VLLM: ["--max-num-seqs=64", "--tensor-parallel-size=2"],
    EngineType.SGLANG: ["--max-running-requests=64", "--tp-size=2"],
}
# As `vllm serve --help=all` (0.32) and SGLang's arg_groups (0.5.23) name them: what we set must be there.
PUBLISHED = {
    EngineType.VLLM: {
        "--served-model-name", "--host", "--port", "--max-model-len", "--enable-force-include-usage",
        "--enable-prompt-tokens-details", "--shutdown-timeout", "--disable-fastapi-docs", "--max-num-seqs",
    },
    EngineType.SGLANG: {
        "--model-path", "--served-model-name", "--host", "--port", "--context-length", "--enable-metrics",
        "--enable-cache-report", "--stream-response-default-include-usage", "--max-running-requests", "--api-key",
    },
}  # fmt: skip


@pytest.fixture(params=list(GOLDEN))
def kind(request: pytest.FixtureRequest) -> EngineType:
    return request.param  # type: ignore[no-any-return]


def described(kind: EngineType) -> Described:
    found = adapter_for(kind)
    assert isinstance(found, Described)
    return found


def test_the_command_line_is_this(kind: EngineType):
    launch = adapter_for(kind).launch(
        model=Path("/models/qwen"), args=ARGS[kind], port=8000, context_tokens=4_096, served_name="chat"
    )
    assert " ".join(launch.argv) == GOLDEN[kind]
    own = {word.partition("=")[0] for word in launch.argv if word.startswith("--")}
    assert own - {arg.partition("=")[0] for arg in ARGS[kind]} <= PUBLISHED[kind]
    assert launch.env["HF_HUB_OFFLINE"] == "1"


def test_the_key_is_where_the_engine_looks_for_it():
    launches = {
        kind: adapter_for(kind).launch(model=Path("/m"), args=[], port=1, context_tokens=1, served_name="m")
        for kind in GOLDEN
    }
    assert launches[EngineType.VLLM].key_variable == "VLLM_API_KEY"
    assert not any("api-key" in word for word in launches[EngineType.VLLM].argv)
    assert f"--api-key=$({KEY_VARIABLE})" in launches[EngineType.SGLANG].argv


def test_what_pilotage_sets_itself_and_abbreviations_of_it_are_refused(kind: EngineType):
    engine = described(kind)
    for arg in (
        "--host=0.0.0.0",
        "--port=1",
        "--api-key=x",
        "--max-model-le=5",
        "--served-model-name=x",
        "--hos=0.0.0.0",
    ):
        with pytest.raises(InvalidEngineArgs):
            engine.slots([arg])
    assert not {flag.partition("=")[0] for flag in engine.own_flags} & set(engine.flags)


def test_only_inference_is_passed_on_and_embeddings_only_where_asked(kind: EngineType):
    engine = described(kind)
    embed = "--runner=pooling" if kind is EngineType.VLLM else "--is-embedding"
    assert {route.path for route in engine.routes([])} == {"/v1/chat/completions", "/v1/completions"}
    assert {route.path for route in engine.routes([embed])} == {"/v1/embeddings"}


def test_engines_keep_connections_longer_than_the_gateway_does(kind: EngineType):
    engine = described(kind)
    own_s = next(float(value) for name, value in engine.env.items() if "KEEP_ALIVE" in name)
    assert engine.keepalive_s < own_s


def test_a_name_that_sglang_refuses_is_refused_before_it():
    with pytest.raises(InvalidEngineArgs, match="SGLang takes no model name with ':'"):
        adapter_for(EngineType.SGLANG).require_name("a:b")
    adapter_for(EngineType.VLLM).require_name("a:b")


def test_a_flag_that_is_on_or_off_is_said_as_the_engine_wants_it():
    def said(kind: EngineType, *args: str) -> tuple[str, ...]:
        return adapter_for(kind).launch(model=Path("/m"), args=args, port=1, context_tokens=1, served_name="m").argv

    assert said(EngineType.VLLM, "--enforce-eager=true")[-1] == "--enforce-eager"
    assert said(EngineType.VLLM, "--enforce-eager")[-1] == "--enforce-eager"
    assert said(EngineType.VLLM, "--enable-prefix-caching=false")[-1] == "--no-enable-prefix-caching"
    assert "cuda-graph" not in " ".join(said(EngineType.SGLANG, "--disable-cuda-graph=false"))
    assert said(EngineType.SGLANG, "--disable-cuda-graph=true")[-1] == "--disable-cuda-graph"


def test_a_folder_of_safetensors_is_read(tmp_path: Path):
    with pytest.raises(HeaderError, match="no safetensors"):
        read_model_folder(tmp_path)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(HeaderError, match=r"config\.json"):
        read_model_folder(tmp_path)
    config = {"model_type": "qwen3", "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
              "head_dim": 128, "max_position_embeddings": 40_960}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_model_folder(tmp_path)
    assert facts.weights_bytes == 2 * (16 + len(header))
    assert facts.trained_context_tokens == 40_960
    assert facts.attention
    assert (facts.attention.layers, facts.attention.kv_heads, facts.attention.key_head_dim) == (36, 8, 128)
