"""`pilotage daemon`."""

import sys

import click


@click.command("daemon")
def command() -> None:
    """Run this user's daemon in the foreground, for systemd --user or launchd.

    `up` starts one by itself. It logs JSON to standard error, and ends when the last service is down. On SIGTERM it
    leaves running what runs; the next daemon takes it up.
    """
    from pilotage.cli.daemon_process import main

    sys.exit(main())
