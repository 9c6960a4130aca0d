"""`pilotage up`."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pilotage.api import LLMGateway, LLMService, Target
from pilotage.cli.chat import answer, model_of
from pilotage.cli.client import Daemon, key_of
from pilotage.cli.narrate import Narrator, is_settled, trouble_of
from pilotage.cli.output import output_option, print_data, stderr, stdout
from pilotage.cli.validate import FILES, checked
from pilotage.errors import PilotageError

POLL_S = 0.2


class NotServing(PilotageError):
    """What was asked for does not come up."""

    condition_reason = "NotServing"


@click.command("up")
@FILES
@click.option("-d", "--detach", is_flag=True, help="Return once everything is ready, and leave it running.")
@click.option(
    "--timeout", "timeout_s", type=float, default=None, metavar="SECONDS", help="With -d: give up after this."
)
@click.option("--ask", default=None, metavar="PROMPT", help="Once it is ready, ask the first service this.")
@output_option
def command(files: tuple[Path, ...], detach: bool, timeout_s: float | None, ask: str | None, output: str) -> None:
    """Serve what the files say on this machine, beside what is served already.

    The first `up` starts a daemon, the gateway and the replicas. Another `up` adds its services to the same gateway;
    with a changed file it replaces replicas one by one, and no request is dropped. Without -d it stays and shows what
    happens: Ctrl-C drains and stops the services of these files, a second Ctrl-C stops them at once.

    Each user of a machine has a daemon, services and a gateway of their own; ports must differ.
    """
    documents = checked(list(files), Target.LOCAL)
    services = [d.resource for d in documents if isinstance(d.resource, LLMService)]
    gateway = next((d.resource for d in documents if isinstance(d.resource, LLMGateway)), None)
    daemon = Daemon.of_this_user()
    daemon.start()
    said = daemon.apply([_dumped(s) for s in services], _dumped(gateway) if gateway else None)
    keys = [entry["service"] for entry in said["outcomes"]]
    for entry in said["outcomes"]:
        stderr.print(f"{entry['service'].partition('/')[2]:<28} {entry['outcome']}", markup=False)
    with Narrator(daemon, keys) as narrator:
        narrator.follow(said["after"])
        interrupts = None if detach else _Interrupts(daemon, keys)
        found = _until_ready(daemon, keys, timeout_s=timeout_s if detach else None, interrupts=interrupts)
        if found:
            # The last events are on their way.
            time.sleep(POLL_S)
            narrator.pause()
            _print_found(found, ask=ask, output=output)
        if interrupts is not None:
            if found and not interrupts.count:
                stderr.print("Ctrl-C drains and stops; with -d it would go on alone")
            _until_gone(daemon, keys, interrupts)


def _print_found(services: list[dict[str, Any]], *, ask: str | None, output: str) -> None:
    if ask:
        service = services[0]
        stderr.print(f"\n> {ask}", markup=False)
        answer(service["status"]["url"], model_of(service), [{"role": "user", "content": ask}], None)
    if output == "text":
        _print_how_to_use(services[0])
    else:
        print_data(services, output)


def _until_ready(
    daemon: Daemon, keys: list[str], *, timeout_s: float | None, interrupts: "_Interrupts | None"
) -> list[dict[str, Any]] | None:
    """The services once all are ready; None when the user interrupted. Raises NotServing when they can't come up."""
    began_s = time.monotonic()
    while interrupts is None or not interrupts.count:
        found = [service for service in daemon.services() if key_of(service) in keys]
        if len(found) == len(keys) and all(is_settled(service) for service in found):
            return found
        trouble = next((said for service in found if (said := trouble_of(service))), None)
        if trouble and interrupts is None:
            raise NotServing(
                trouble, hint="it is still wanted: `pilotage up` again after mending it, or `pilotage down`"
            )
        if timeout_s is not None and time.monotonic() - began_s > timeout_s:
            raise NotServing(f"not ready after {timeout_s:.0f} s", hint="`pilotage status NAME` says what it waits for")
        time.sleep(POLL_S)
    return None


def _until_gone(daemon: Daemon, keys: list[str], interrupts: "_Interrupts") -> None:
    while True:
        try:
            left = [service for service in daemon.services() if key_of(service) in keys]
        except PilotageError:
            left = []
        if not left:
            if not interrupts.count:
                stderr.print("taken down by somebody else")
            return
        time.sleep(POLL_S)


class _Interrupts:
    """Ctrl-C drains, a second one stops at once."""

    def __init__(self, daemon: Daemon, keys: list[str]) -> None:
        self.count = 0
        self._daemon = daemon
        self._keys = keys
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGTERM, self._interrupted)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        there = {key_of(service) for service in self._daemon.services()}
        keys = [key for key in self._keys if key in there]
        if self.count == 1:
            stderr.print("draining; Ctrl-C again stops at once")
            self._daemon.down(keys, now=False)
        elif self.count == 2:
            stderr.print("stopping at once")
            self._daemon.down(keys, now=True)
        else:
            sys.exit(130)


def _dumped(resource: LLMService | LLMGateway) -> dict[str, Any]:
    return resource.model_dump(mode="json", by_alias=True, exclude_none=True)


def _print_how_to_use(service: dict[str, Any]) -> None:
    url, model = service["status"]["url"], model_of(service)
    key = "$API_KEY" if service["spec"].get("access") else "none"
    header = ' -H "Authorization: Bearer $API_KEY"' if key != "none" else ""
    python_key = 'os.environ["API_KEY"]' if key != "none" else '"none"'
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'
    imports = "import os; from openai import OpenAI" if key != "none" else "from openai import OpenAI"
    lines = [
        "",
        f"URL     {url}",
        "",
        f"curl -N {url}/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'",
        "",
        imports,
        f'client = OpenAI(base_url="{url}", api_key={python_key})',
        'messages = [{"role": "user", "content": "Hello"}]',
        f'stream = client.chat.completions.create(model="{model}", messages=messages, stream=True)',
        'print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))',
        "",
    ]
    stdout.print("\n".join(lines), markup=False, soft_wrap=True)
