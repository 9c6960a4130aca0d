"""Answers to stdout, everything else to stderr; tables for people, JSON and YAML for machines."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

# rich honors NO_COLOR and drops color where the output is no terminal.
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

FORMATS = click.Choice(["text", "json", "yaml"])


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--output text|json|yaml`; the last two are a stable contract."""
    return click.option(
        "-o", "--output", type=FORMATS, default="text", show_default=True, help="How to print the answer."
    )(function)


def print_data(data: Any, output: str) -> None:
    """`data` as JSON or YAML on stdout."""
    if output == "json":
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    text = io.StringIO()
    yaml.dump(data, text)
    sys.stdout.write(text.getvalue())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in the way of kubectl: no lines, upper-case heads, one row a line whatever the width."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*row)
    if stdout.is_terminal:
        stdout.print(table, soft_wrap=True)
    else:
        Console(file=sys.stdout, width=500, highlight=False).print(table)
