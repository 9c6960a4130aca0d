"""`pilotage status`."""

import time
from typing import Any

import click

from pilotage.cli.client import Daemon, key_of
from pilotage.cli.output import output_option, print_data, print_table, stdout
from pilotage.units import in_gb, in_seconds


@click.command("status")
@click.argument("name")
@click.option("-w", "--watch", is_flag=True, help="Print again whenever something changes.")
@output_option
def command(name: str, watch: bool, output: str) -> None:
    """Show how a service is: conditions, replicas with their phases, and the last decisions with their reasons.

    Exit code 0 when it is ready, 1 when not.
    """
    daemon = Daemon.of_this_user()
    last = None
    while True:
        service = daemon.service(name)
        decisions = [e for e in daemon.decisions(key_of(service), last=40) if e["kind"] == "decision"][-8:]
        shown = (_stable(service), [d["number"] for d in decisions])
        if shown != last:
            last = shown
            if output == "text":
                _print(service, decisions)
            else:
                print_data({**service, "decisions": decisions}, output)
        if not watch:
            break
        time.sleep(0.5)
    ready = next(c for c in service["status"]["conditions"] if c["type"] == "Ready")
    click.get_current_context().exit(0 if ready["status"] == "True" else 1)


def _stable(service: dict[str, Any]) -> list[Any]:
    """What is worth printing again: not memory and request counts, which always move."""
    status = service["status"]
    return [status["conditions"], [(r["name"], r["phase"]) for r in status["replicaStatuses"]]]


def _print(service: dict[str, Any], decisions: list[dict[str, Any]]) -> None:
    status = service["status"]
    plan = status.get("plan")
    stdout.print(f"[bold]{service['metadata']['name']}[/bold]  {status['url']}", soft_wrap=True)
    stdout.print(f"model    {service['spec']['model']['source']}", markup=False, soft_wrap=True)
    if plan:
        said = (
            f"plan     {plan['contextTokens']} tokens of context, {plan['requestsPerReplica']} requests a replica, "
            f"{in_gb(plan['memoryBytesPerReplica'])} a replica"
        )
        stdout.print(said, markup=False, soft_wrap=True)
    stdout.print(f"waiting  {status['waitingRequests']} requests\n", markup=False)
    print_table(
        ("CONDITION", "STATUS", "REASON", "MESSAGE"),
        [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]],
    )
    click.echo()
    print_table(
        ("REPLICA", "PHASE", "LOADING", "WARMING", "RUNNING", "WHY"),
        [_row(replica) for replica in status["replicaStatuses"]],
    )
    click.echo()
    print_table(
        ("DECISION", "REPLICA", "AGE", "WHY"),
        [
            (d["reason"], d.get("replica", ""), in_seconds(time.time() - d["at_s"]), d.get("message", ""))
            for d in decisions
        ],
    )


def _row(replica: dict[str, Any]) -> tuple[str, ...]:
    took = replica.get("startupSeconds", {})
    running = replica.get("running")
    return (
        replica["name"],
        replica["phase"],
        in_seconds(took["Loading"]) if "Loading" in took else "",
        in_seconds(took["Warming"]) if "Warming" in took else "",
        "" if running is None else str(running),
        replica.get("failure", ""),
    )
