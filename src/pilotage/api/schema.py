"""The schemas that others read: a CRD for Kubernetes, a JSON Schema for editors."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pilotage.api.llmgateway import LLMGateway
from pilotage.api.llmservice import LLMService
from pilotage.api.meta import API_VERSION, GROUP, VERSION

Schema = dict[str, Any]

CONDITION: Schema = {
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": {"type": "string", "description": "What the condition is about, such as Ready."},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Of the spec it was made from."},
        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When status last changed."},
        "reason": {"type": "string", "description": "One CamelCase word for machines."},
        "message": {"type": "string", "description": "What happened, why, and what to do."},
    },
}
SERVICE_STATUS: Schema = {
    "type": "object",
    "description": "What is.",
    "properties": {
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Generation last acted on."},
        "url": {"type": "string", "description": "Where clients reach the service."},
        "replicas": {"type": "integer", "format": "int32", "description": "Replicas that exist."},
        "readyReplicas": {"type": "integer", "format": "int32", "description": "Replicas that answer."},
        "waitingRequests": {"type": "integer", "format": "int32", "description": "Requests waiting for a place."},
        "revision": {"type": "string", "description": "What the replicas should be of."},
        "plan": {
            "type": "object",
            "description": "What the file left open, and what it became.",
            "properties": {
                "contextTokens": {"type": "integer", "format": "int32", "description": "Longest request, in tokens."},
                "requestsPerReplica": {"type": "integer", "format": "int32", "description": "At once."},
                "cacheTokens": {"type": "integer", "format": "int64", "description": "Tokens a replica can hold."},
                "memoryBytesPerReplica": {"type": "integer", "format": "int64", "description": "Beside the weights."},
                "weights": {"type": "string", "description": "The source with everything floating fixed."},
            },
        },
        "replicaStatuses": {
            "type": "array",
            "description": "Each replica.",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "description": "The replica."},
                    "revision": {"type": "string", "description": "What it is of."},
                    "phase": {"type": "string", "description": "Where it is in its life."},
                    "since": {"type": "string", "format": "date-time", "description": "When it came there."},
                    "failure": {"type": "string", "description": "Why it failed."},
                },
            },
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
        "selector": {"type": "string", "description": "Label selector of the replicas, for an autoscaler."},
        "conditions": {
            "type": "array",
            "description": "What holds, each with reason and remedy.",
            "items": CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    },
}
COLUMNS = [
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Replicas", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def json_schema() -> Schema:
    """A JSON Schema (2020-12) for a file with LLMService and LLMGateway documents."""
    models: list[type[BaseModel]] = [LLMService, LLMGateway]
    parts = [model.model_json_schema(by_alias=True) for model in models]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://{GROUP}/schemas/{VERSION}.json",
        "title": f"Pilotage {API_VERSION}",
        "oneOf": [_requiring_version(part) for part in (_inlined(part, part.get("$defs", {})) for part in parts)],
    }


def custom_resource_definition(model: type[LLMService] | type[LLMGateway]) -> Schema:
    """The CustomResourceDefinition of `model`: a structural schema, with status and scale where they apply."""
    kind = model.__name__
    plural = kind.lower() + "s"
    raw = model.model_json_schema(by_alias=True)
    properties = _structural(_inlined(raw, raw.get("$defs", {})))["properties"]
    schema: Schema = {
        "type": "object",
        "description": (model.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": properties["spec"],
        },
    }
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    if model is LLMService:
        schema["properties"]["status"] = SERVICE_STATUS
        version["additionalPrinterColumns"] = COLUMNS
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    else:
        schema["properties"]["status"] = {
            "type": "object",
            "description": "What is.",
            "properties": {"conditions": SERVICE_STATUS["properties"]["conditions"]},
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": ["llm" if model is LLMService else "llmgw"],
                "categories": ["pilotage"],
            },
            "versions": [version],
        },
    }


def _requiring_version(schema: Schema) -> Schema:
    return {**schema, "required": ["apiVersion", "kind", *schema.get("required", [])]}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """`schema` with each $ref replaced by what it names, and generated titles left out."""
    if isinstance(schema, list):
        return [_inlined(entry, definitions) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined({**target, **beside}, definitions)
    properties = schema.get("properties")
    kept = {k: _inlined(v, definitions) for k, v in schema.items() if k not in ("$defs", "title", "properties")}
    if isinstance(properties, dict):
        kept["properties"] = {name: _inlined(entry, definitions) for name, entry in properties.items()}
    return kept


def _structural(schema: Any) -> Any:
    """`schema` as Kubernetes wants it: no null alternatives, no defaults, no closed objects.

    Defaults stay out of the API server because they are kept with the revision that uses them (an upgrade must restart
    nothing); closed objects are the job of strict field validation.
    """
    if isinstance(schema, list):
        return [_structural(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    alternatives = [entry for entry in schema.get("anyOf", []) if entry.get("type") != "null"]
    if len(alternatives) == 1:
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        return _structural({**alternatives[0], **beside})
    kept: Schema = {}
    for key, value in schema.items():
        if key == "default" or (key == "additionalProperties" and value is False):
            continue
        if key == "properties":
            kept[key] = {name: _structural(entry) for name, entry in value.items()}
        else:
            kept[key] = _structural(value)
    if kept.get("type") == "integer":
        kept["format"] = "int64" if kept.get("maximum", 2**31) >= 2**31 else "int32"
    return kept
