"""`pilotage chat`."""

import json
import os
import sys
import time
from typing import Any

import click
import httpx

from pilotage.cli.client import Daemon
from pilotage.cli.output import stderr
from pilotage.errors import PilotageError, Unavailable

CONNECT_S = 5.0


class ChatFailed(PilotageError):
    """The gateway's error, in its own words."""

    condition_reason = "ChatFailed"


@click.command("chat")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--max-tokens", type=click.IntRange(1), default=None, help="Longest answer.")
@click.option("--system", default=None, help="A system prompt.")
def command(name: str, prompt: str | None, max_tokens: int | None, system: str | None) -> None:
    """Talk to a service through the gateway; says each answer's time to first token and speed.

    Without PROMPT it reads from standard input: a line each at a terminal, all of it from a pipe. Where the service
    asks for an API key, set PILOTAGE_API_KEY.
    """
    service = Daemon.of_this_user().service(name)
    url = service["status"]["url"]
    model = model_of(service)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is not None:
        answer(url, model, [*messages, {"role": "user", "content": prompt}], max_tokens)
        return
    stderr.print("end with Ctrl-D")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": answer(url, model, messages, max_tokens)})


def model_of(service: dict[str, Any]) -> str:
    """A name by which clients call the service's model."""
    return str((service["spec"]["model"].get("servedNames") or [service["metadata"]["name"]])[0])


def answer(url: str, model: str, messages: list[dict[str, str]], max_tokens: int | None) -> str:
    """Print the answer as it comes, and how fast it came to stderr. Returns its text."""
    body = {
        "model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True},
        **({"max_tokens": max_tokens} if max_tokens else {}),
    }  # fmt: skip
    key = os.environ.get("PILOTAGE_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    began_s = time.monotonic()
    first_s: float | None = None
    text = ""
    usage: dict[str, Any] = {}
    try:
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise ChatFailed(_message(response), hint=_hint(response))
            for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event.get("choices", []):
                    delta = choice.get("delta", {}).get("content") or ""
                    if delta:
                        first_s = first_s or time.monotonic()
                        text += delta
                        sys.stdout.write(delta)
                        sys.stdout.flush()
    except httpx.HTTPError as error:
        raise Unavailable(f"the answer broke off: {type(error).__name__}: {error}", hint="try again") from error
    sys.stdout.write("\n")
    sys.stdout.flush()
    _print_speed(began_s, first_s, time.monotonic(), usage)
    return text


def _events(response: httpx.Response) -> Any:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _print_speed(began_s: float, first_s: float | None, ended_s: float, usage: dict[str, Any]) -> None:
    tokens = usage.get("completion_tokens", 0)
    if first_s is None or not tokens:
        return
    speed = f", {(tokens - 1) / (ended_s - first_s):.0f} tokens/s" if tokens > 1 and ended_s > first_s else ""
    stderr.print(
        f"time to first token {first_s - began_s:.3f} s{speed} "
        f"({usage.get('prompt_tokens', 0)} tokens in, {tokens} out)"
    )


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {response.status_code}"


def _hint(response: httpx.Response) -> str:
    if response.status_code == 401:
        return "set PILOTAGE_API_KEY to one of the service's keys"
    return "`pilotage status NAME` says how the service is" if response.status_code == 503 else ""
