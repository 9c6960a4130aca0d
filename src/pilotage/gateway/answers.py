"""Answers that the gateway gives itself, in the shapes of OpenAI's API.

Source: OpenAI's API reference, error codes; clients raise their exception types by the HTTP status.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a JSON body, and the seconds after which a retry makes sense."""

    status: int
    body: bytes
    code: str
    retry_after_s: int | None = None


def error(status: int, *, kind: str, code: str, message: str, retry_after_s: int | None = None) -> Answer:
    """An error as OpenAI's clients read it."""
    body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return Answer(status, body, code, retry_after_s)


def bad_request(code: str, message: str) -> Answer:
    """400: the request is wrong."""
    return error(400, kind="invalid_request_error", code=code, message=message)


def no_key() -> Answer:
    """401: a key is needed and none, or an unknown one, was given."""
    return error(
        401,
        kind="authentication_error",
        code="invalid_api_key",
        message="This model needs an API key: send one that it knows as `Authorization: Bearer KEY`.",
    )


def unknown_model(model: str, names: Iterable[str]) -> Answer:
    """404: no such model for this caller, with the names it may use."""
    known = ", ".join(sorted(names)) or "none"
    return error(
        404,
        kind="invalid_request_error",
        code="model_not_found",
        message=f"The model {model[:200]!r} does not exist here or is not open to you. You may use: {known}.",
    )


def unknown_route(method: str, path: str) -> Answer:
    """404: a path that is not passed through."""
    return error(
        404,
        kind="invalid_request_error",
        code="unknown_url",
        message=f"Unknown request: {method} {path[:200]}. See GET /v1/models and POST /v1/chat/completions.",
    )


def not_supported(model: str, path: str) -> Answer:
    """404: the model is there, but its engine has no such route."""
    return error(
        404,
        kind="invalid_request_error",
        code="unsupported_route",
        message=f"The engine that serves {model[:200]!r} has no {path}.",
    )


def too_many_waiting(retry_after_s: int) -> Answer:
    """429: as much waits as the gateway may hold."""
    return error(
        429,
        kind="rate_limit_error",
        code="overloaded",
        message="Too many requests are waiting already. Try again later.",
        retry_after_s=retry_after_s,
    )


def no_capacity(code: str, message: str, retry_after_s: int) -> Answer:
    """503: no replica took the request in time."""
    return error(503, kind="service_unavailable_error", code=code, message=message, retry_after_s=retry_after_s)


def models(names: Iterable[tuple[str, float]]) -> Answer:
    """200: the list of models; pairs of a name and when it was created, in seconds since 1970."""
    data = [
        {"id": name, "object": "model", "created": int(created_s), "owned_by": "pilotage"} for name, created_s in names
    ]
    return Answer(200, orjson.dumps({"object": "list", "data": data}), "ok")


def model(name: str, created_s: float) -> Answer:
    """200: one model."""
    body = {"id": name, "object": "model", "created": int(created_s), "owned_by": "pilotage"}
    return Answer(200, orjson.dumps(body), "ok")
