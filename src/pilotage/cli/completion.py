"""`pilotage completion`."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    \b
    bash:  source <(pilotage completion bash)
    zsh:   source <(pilotage completion zsh)
    fish:  pilotage completion fish | source
    """
    from pilotage.cli.app import commands

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(commands, {}, "pilotage", "_PILOTAGE_COMPLETE").source())
