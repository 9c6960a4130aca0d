"""`pilotage logs`."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from pilotage.cli.client import Daemon, NotRunning
from pilotage.errors import Invalid
from pilotage.fleet.local.directories import Directories

POLL_S = 0.2
PARTS = {"gateway": ("envoy.log", "picker.log"), "daemon": ("daemon.log", "guardian.log")}


@click.command("logs")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@click.option(
    "-n", "--tail", type=click.IntRange(0), default=100, show_default=True, help="Lines of each log to begin with."
)
@click.option("--part", type=click.Choice([*PARTS]), help="The platform's own logs instead of an engine's.")
def command(name: str | None, follow: bool, tail: int, part: str | None) -> None:
    """Print the logs of a service's engines (of all services without NAME), each line with its replica's name.

    The logs of the last replicas that are gone are kept too.
    """
    directories = Directories.of_this_user()
    names = [directories.logs / file for file in PARTS[part]] if part else _engine_logs(directories, name)
    places: dict[Path, int] = {}
    for path in names:
        if path.exists():
            _print_tail(path, tail)
            places[path] = path.stat().st_size
    while follow:
        time.sleep(POLL_S)
        for path in names if part else _engine_logs(directories, name):
            for line in _new_lines(path, places):
                click.echo(f"{path.stem}  {line}")


def _engine_logs(directories: Directories, name: str | None) -> list[Path]:
    logs = sorted(
        (p for p in directories.logs.glob("*.log") if not p.name.endswith(".agent.log")),
        key=lambda p: p.stat().st_mtime,
    )
    own = {file for files in PARTS.values() for file in files}
    logs = [path for path in logs if path.name not in own]
    if name is None:
        return logs
    short = name.rpartition("/")[2]
    found = [path for path in logs if path.stem.rsplit("-", 2)[0] == short]
    if not found:
        try:
            Daemon.of_this_user().service(name)
        except NotRunning as error:
            raise Invalid(f"there is no log of {name!r}", hint="`pilotage ps` lists what is served") from error
    return found


def _print_tail(path: Path, lines: int) -> None:
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in text[-lines:] if lines else []:
        click.echo(f"{path.stem}  {line}")


def _new_lines(path: Path, places: dict[Path, int]) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < places.get(path, 0):
                # It was trimmed.
                places[path] = 0
            file.seek(places.get(path, 0))
            data = file.read()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    places[path] = places.get(path, 0) + whole
    yield from data[:whole].decode("utf-8", "replace").splitlines()
