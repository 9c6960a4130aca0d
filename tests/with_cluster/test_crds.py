"""The CRDs, as a real API server takes them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from pilotage.api import load_documents, read_files
from tests.with_cluster.conftest import ApiServer

ROOT = Path(__file__).resolve().parents[2]
SERVICES = "/apis/pilotage.io/v1alpha1/namespaces/default/llmservices"
STRICT = {"fieldValidation": "Strict"}


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> Iterator[httpx.Client]:
    with api_server.client() as client:
        for path in sorted((ROOT / "deploy" / "crds").glob("*.yaml")):
            crd = YAML(typ="safe", pure=True).load(path.read_text())
            answer = client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=crd, params=STRICT)
            assert answer.status_code == 201, answer.text
            _until_established(client, crd["metadata"]["name"])
        assert client.post("/api/v1/namespaces", json={"metadata": {"name": "default"}}).status_code in (201, 409)
        yield client


def _until_established(client: httpx.Client, name: str) -> None:
    deadline = time.monotonic() + 30
    conditions: dict[str, str] = {}
    while time.monotonic() < deadline:
        said = client.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}").json()
        conditions = {c["type"]: c["status"] for c in said.get("status", {}).get("conditions") or []}
        if conditions.get("Established") == "True":
            assert conditions.get("NonStructuralSchema", "False") == "False", said
            return
        time.sleep(0.1)
    raise AssertionError(conditions)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_accepted_and_comes_back_unchanged(cluster: httpx.Client, path: Path):
    for document in load_documents(read_files([path])):
        resource = document.resource
        sent = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
        url = f"/apis/pilotage.io/v1alpha1/namespaces/default/{resource.kind.lower()}s"
        answer = cluster.post(url, json=sent, params=STRICT)
        assert answer.status_code == 201, answer.text
        assert answer.json()["spec"] == sent["spec"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": {}}, 'unknown field "spec.modle"'),
        ({"replicas": -1}, "spec.replicas"),
        ({"replicas": "two"}, "spec.replicas"),
        ({"engine": {"type": "VLLMM"}}, "spec.engine.type"),
        ({"lifecycle": {"drainSeconds": 10**9}}, "spec.lifecycle.drainSeconds"),
        ({"model": {}}, "spec.model.source"),
    ],
)
def test_a_wrong_resource_is_refused_by_the_server_too(cluster: httpx.Client, change: dict[str, Any], said: str):
    body = {
        "apiVersion": "pilotage.io/v1alpha1", "kind": "LLMService", "metadata": {"name": "wrong"},
        "spec": {"model": {"source": "hf://a/b"}, **change},
    }  # fmt: skip
    answer = cluster.post(SERVICES, json=body, params=STRICT)
    assert answer.status_code in (400, 422), answer.text
    assert said in answer.json()["message"]


def test_the_scale_subresource_reads_and_writes_replicas(cluster: httpx.Client):
    body = {
        "apiVersion": "pilotage.io/v1alpha1", "kind": "LLMService", "metadata": {"name": "scaled"},
        "spec": {"model": {"source": "hf://a/b"}, "replicas": 2},
    }  # fmt: skip
    assert cluster.post(SERVICES, json=body, params=STRICT).status_code == 201
    url = f"{SERVICES}/scaled"
    scale = cluster.get(f"{url}/scale").json()
    assert scale["kind"] == "Scale"
    assert scale["spec"]["replicas"] == 2
    scale["spec"]["replicas"] = 5
    assert cluster.put(f"{url}/scale", json=scale).status_code == 200
    service = cluster.get(url).json()
    assert service["spec"]["replicas"] == 5
    service["status"] = {"replicas": 4, "readyReplicas": 3, "selector": "pilotage.io/service=scaled"}
    assert cluster.put(f"{url}/status", json=service, params=STRICT).status_code == 200
    status = cluster.get(f"{url}/scale").json()["status"]
    assert status == {"replicas": 4, "selector": "pilotage.io/service=scaled"}
    assert cluster.get(url).json()["metadata"]["generation"] == 2


def test_status_has_the_shape_that_the_loop_writes(cluster: httpx.Client):
    condition = {
        "type": "Ready", "status": "True", "reason": "Serving", "message": "1 of 1 replicas answer",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    body = {
        "apiVersion": "pilotage.io/v1alpha1", "kind": "LLMService", "metadata": {"name": "conditions"},
        "spec": {"model": {"source": "hf://a/b"}},
    }  # fmt: skip
    service = cluster.post(SERVICES, json=body, params=STRICT).json()
    service["status"] = {"observedGeneration": 1, "url": "http://127.0.0.1:8080/v1", "conditions": [condition]}
    answer = cluster.put(f"{SERVICES}/conditions/status", json=service, params=STRICT)
    assert answer.status_code == 200, answer.text
    service["status"]["conditions"] = [condition, condition]
    assert cluster.put(f"{SERVICES}/conditions/status", json=service, params=STRICT).status_code in (409, 422)


def test_the_printed_columns_are_what_people_want(cluster: httpx.Client):
    table = cluster.get(SERVICES, headers={"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}).json()
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Ready", "Replicas", "Model", "Age"]


def test_every_field_explains_itself(cluster: httpx.Client):
    page = cluster.get("/openapi/v3/apis/pilotage.io/v1alpha1").json()
    spec = page["components"]["schemas"]["io.pilotage.v1alpha1.LLMService"]["properties"]["spec"]
    assert "hf://" in spec["properties"]["model"]["properties"]["source"]["description"]
