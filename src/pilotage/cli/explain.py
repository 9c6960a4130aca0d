"""`pilotage explain`."""

from datetime import datetime

import click

from pilotage.cli.client import Daemon, key_of
from pilotage.cli.output import output_option, print_data, print_table


@click.command("explain")
@click.argument("name")
@click.option("--last", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many events.")
@output_option
def command(name: str, last: int, output: str) -> None:
    """Tell what was decided about a service and why, oldest first: the ledger outlives restarts."""
    daemon = Daemon.of_this_user()
    events = daemon.decisions(key_of(daemon.service(name)), last=last)
    if output != "text":
        print_data(events, output)
        return
    rows = []
    for event in events:
        at = datetime.fromtimestamp(event["at_s"]).astimezone().strftime("%H:%M:%S")
        rows.append((at, event["kind"], event.get("reason", ""), event.get("replica", ""), event.get("message", "")))
    print_table(("TIME", "KIND", "WHAT", "REPLICA", "WHY"), rows)
