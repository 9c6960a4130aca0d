"""`pilotage down`."""

import time

import click

from pilotage.cli.client import Daemon, NotRunning, key_of, named
from pilotage.cli.narrate import FROM_NOW, Narrator
from pilotage.cli.output import stderr
from pilotage.errors import PilotageError

POLL_S = 0.1


@click.command("down")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--now", is_flag=True, help="Stop at once; running answers are cut.")
@click.option("--no-wait", is_flag=True, help="Return while it drains.")
def command(names: tuple[str, ...], now: bool, no_wait: bool) -> None:
    """Take services down; without NAME all of this user's, and with the last one the gateway and the daemon.

    Running answers finish first, for as long as spec.lifecycle.drainSeconds allows. Weights stay in the cache.
    """
    daemon = Daemon.of_this_user()
    try:
        services = daemon.services()
    except NotRunning:
        if names:
            raise
        stderr.print("nothing is served here")
        return
    keys = [key_of(named(services, name)) for name in names] or None
    going = daemon.down(keys, now=now)
    if no_wait:
        return
    with Narrator(daemon, going) as narrator:
        narrator.follow(FROM_NOW)
        while _left(daemon, going):
            time.sleep(POLL_S)
    if not names:
        daemon.until_ended()
    for key in going:
        stderr.print(f"{key.partition('/')[2]:<28} down", markup=False)


def _left(daemon: Daemon, keys: list[str]) -> bool:
    try:
        return any(key_of(service) in keys for service in daemon.services())
    except PilotageError:
        return False
