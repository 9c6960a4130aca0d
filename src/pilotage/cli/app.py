"""`pilotage`: the group of all commands, and what a failure looks like."""

import importlib
import sys

import click
from rich.markup import escape

from pilotage.api import InvalidResources
from pilotage.cli.output import stderr
from pilotage.errors import PilotageError

# Imported when called for: `pilotage ps` should not pay for a model hub's client.
COMMANDS = {
    "up": "pilotage.cli.up",
    "down": "pilotage.cli.down",
    "ps": "pilotage.cli.ps",
    "status": "pilotage.cli.status",
    "explain": "pilotage.cli.explain",
    "logs": "pilotage.cli.logs",
    "chat": "pilotage.cli.chat",
    "validate": "pilotage.cli.validate",
    "cache": "pilotage.cli.cache",
    "schema": "pilotage.cli.schema",
    "completion": "pilotage.cli.completion",
    "version": "pilotage.cli.version",
    "daemon": "pilotage.cli.daemon",
}


class Commands(click.Group):
    """Commands in the order in which a user meets them, with a failure as a sentence and a hint."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error
            raise


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def commands() -> None:
    """Large language models in production, from one file.

    \b
    pilotage up chat.yaml        serve what the file says on this machine
    pilotage ps                  what is served
    pilotage chat NAME           talk to it
    pilotage status NAME         how it is, and why
    pilotage down                stop everything

    The same file runs, unchanged, in a Kubernetes cluster. docs/reference.md lists all its fields.
    """


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 "no" or failed, 2 misuse or a wrong file."""
    try:
        code = commands.main(standalone_mode=False, prog_name="pilotage")
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except InvalidResources as error:
        for problem in error.problems:
            stderr.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        _say(error)
        code = 2
    except PilotageError as error:
        _say(error)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # `pilotage logs | head`: the reader has seen enough.
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: PilotageError) -> None:
    stderr.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    if error.hint:
        stderr.print(f"hint: {escape(error.hint)}", highlight=False, soft_wrap=True)
