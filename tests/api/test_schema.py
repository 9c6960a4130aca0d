import jsonschema
import pytest

from pilotage.api import LLMGateway, LLMService, custom_resource_definition, json_schema

SERVICE = {
    "apiVersion": "pilotage.io/v1alpha1", "kind": "LLMService", "metadata": {"name": "chat"},
    "spec": {"model": {"source": "file:///m.gguf"}},
}  # fmt: skip


def test_the_json_schema_takes_what_the_loader_takes_and_refuses_unknown_fields():
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    assert validator.is_valid(SERVICE)
    assert validator.is_valid({"apiVersion": "pilotage.io/v1alpha1", "kind": "LLMGateway"})
    assert not validator.is_valid({**SERVICE, "spec": {**SERVICE["spec"], "modle": 1}})  # type: ignore[dict-item]
    assert not validator.is_valid({k: v for k, v in SERVICE.items() if k != "apiVersion"})


@pytest.mark.parametrize("model", [LLMService, LLMGateway])
def test_the_crd_is_structural_and_every_field_is_described(model: type[LLMService] | type[LLMGateway]):
    version = custom_resource_definition(model)["spec"]["versions"][0]

    def walk(schema: dict, path: str) -> None:  # type: ignore[type-arg]
        assert "type" in schema, path
        assert not {"$ref", "anyOf", "oneOf", "default", "title", "const"} & (set(schema) - {"properties"}) or path in (
            ".apiVersion",
            ".kind",
        ), path
        for name, field in schema.get("properties", {}).items():
            if path.startswith((".spec", ".status")):
                assert field.get("description"), f"{path}.{name}"
            walk(field, f"{path}.{name}")
        if isinstance(schema.get("items"), dict):
            walk(schema["items"], f"{path}[]")

    walk(version["schema"]["openAPIV3Schema"], "")


def test_replicas_are_never_defaulted_so_that_a_scaler_can_own_them():
    spec = custom_resource_definition(LLMService)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    assert "default" not in spec["properties"]["replicas"]
    assert "replicas" not in spec.get("required", [])
