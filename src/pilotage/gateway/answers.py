"""Answers that the gateway gives itself, in the shapes of OpenAI's API.

Source: OpenAI's API reference, error codes; clients raise their exception types by the HTTP status.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a JSON body, the seconds after which a retry makes sense, and further headers."""

    status: int
    body: bytes
    code: str
    retry_after_s: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


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


def over_limit(limit: str, message: str, *, retry_after_s: int | None, headers: Iterable[tuple[str, str]]) -> Answer:
    """429: a limit of the caller's key is reached. `limit` is "requests" or "tokens", the error's type at OpenAI."""
    said = f"{message[:1].upper()}{message[1:]}."
    answer = error(429, kind=limit, code="rate_limit_exceeded", message=said, retry_after_s=retry_after_s)
    return replace(answer, headers=tuple(headers))


def quarantined(crashes: int) -> Answer:
    """400: this very body was running each time when several engines ended. A retry is no use, so it is no 5xx."""
    return error(
        400,
        kind="invalid_request_error",
        code="request_quarantined",
        message=f"This very request was running on {crashes} replicas when their engines ended, so it is sent to no "
        "other for ten minutes. Change it, or ask who runs the service to look at the engines' logs.",
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
