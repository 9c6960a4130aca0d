"""`pilotage schema`."""

import click

from pilotage.api import LLMGateway, LLMService, custom_resource_definition, json_schema
from pilotage.cli.output import print_data


@click.command("schema")
@click.argument("kind", type=click.Choice(["json", "crds"]))
def command(kind: str) -> None:
    """Print the JSON Schema that editors use, or the CRDs that Kubernetes does."""
    if kind == "json":
        print_data(json_schema(), "json")
        return
    print_data(custom_resource_definition(LLMService), "yaml")
    click.echo("---")
    print_data(custom_resource_definition(LLMGateway), "yaml")
