"""`pilotage cache`."""

import time

import click

from pilotage.cli.output import output_option, print_data, print_table
from pilotage.cli.wiring import cache_budget_bytes, store_of
from pilotage.fleet.local.directories import Directories
from pilotage.units import in_gb, in_seconds


@click.group("cache")
def command() -> None:
    """Show or clear the weights that this machine keeps.

    They lie under PILOTAGE_CACHE or the user's cache folder. PILOTAGE_CACHE_BUDGET_GB limits them: after a fetch the
    least recently used go, never those that run.
    """


@command.command("ls")
@output_option
def ls(output: str) -> None:
    """List what is in the cache, most recently used first."""
    entries = store_of(Directories.of_this_user()).entries()
    if output != "text":
        print_data(
            [
                {
                    "source": e.source,
                    "resolved": e.resolved,
                    "sizeBytes": e.size_bytes,
                    "sha256": e.files[0].sha256,
                    "inUse": e.in_use,
                    "usedAt": e.used_s,
                }
                for e in entries
            ],
            output,
        )
        return
    print_table(
        ("SOURCE", "SIZE", "USED", "IN USE"),
        [
            (e.source, in_gb(e.size_bytes), f"{in_seconds(time.time() - e.used_s)} ago", "yes" if e.in_use else "")
            for e in entries
        ],
    )


@command.command("prune")
@click.option("--budget-gb", type=click.FloatRange(0), default=None, help="Keep at most this much.")
@click.option("--all", "everything", is_flag=True, help="Remove all that is not in use.")
@output_option
def prune(budget_gb: float | None, everything: bool, output: str) -> None:
    """Remove weights, least recently used first, until the rest fits. What runs is spared.

    Without an option the budget is PILOTAGE_CACHE_BUDGET_GB.
    """
    budget_bytes = 0 if everything else int(budget_gb * 1e9) if budget_gb is not None else cache_budget_bytes()
    if budget_bytes is None:
        raise click.UsageError("say how much to keep: --budget-gb N, --all, or PILOTAGE_CACHE_BUDGET_GB")
    removed = store_of(Directories.of_this_user()).prune(budget_bytes=budget_bytes)
    if output != "text":
        print_data([{"source": e.source, "sizeBytes": e.size_bytes} for e in removed], output)
        return
    for entry in removed:
        click.echo(f"removed {entry.source} ({in_gb(entry.size_bytes)})")
    click.echo(f"freed {in_gb(sum(e.size_bytes for e in removed))}")
