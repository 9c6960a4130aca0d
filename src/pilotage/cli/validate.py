"""`pilotage validate`."""

from pathlib import Path

import click

from pilotage.api import Document, InvalidResources, LLMService, Target, load_documents, problems_on, read_files
from pilotage.cli.output import output_option, print_data
from pilotage.engines import InvalidEngineArgs, adapter_for

FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")


def checked(paths: list[Path], target: Target) -> list[Document]:
    """The resources in `paths`. Raises InvalidResources with every mistake, those that only `target` minds included."""
    from pilotage.api import FileProblem

    documents = load_documents(read_files(_expanded(paths)))
    problems = problems_on(target, documents)
    for document in documents:
        service = document.resource
        if isinstance(service, LLMService):
            try:
                adapter_for(service.spec.engine.type).slots(service.spec.engine.args)
            except InvalidEngineArgs as error:
                path = ("spec", "engine", "args")
                problems.append(
                    FileProblem(document.file, document.line_of(path), ".".join(path), str(error), error.hint)
                )
    if problems:
        raise InvalidResources(problems)
    return documents


def _expanded(paths: list[Path]) -> list[Path]:
    """Files, with a folder standing for the YAML files in it."""
    files: list[Path] = []
    for path in paths:
        files += sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml")) if path.is_dir() else [path]
    return files


@click.command("validate")
@FILES
@click.option(
    "--target", type=click.Choice([t.value for t in Target]), default=Target.LOCAL.value, show_default=True,
    help="Where the file is to run.",
)  # fmt: skip
@output_option
def command(files: tuple[Path, ...], target: str, output: str) -> None:
    """Check files without starting anything; print every mistake with its line. Exit code 2 when there is one.

    With --output json or yaml, print the resources with all their defaults.
    """
    documents = checked(list(files), Target(target))
    resources = [d.resource.model_dump(mode="json", by_alias=True, exclude_none=True) for d in documents]
    if output == "text":
        for document in documents:
            resource = document.resource
            click.echo(f"{document.file}: {resource.kind} {resource.metadata.name} is valid")
    else:
        print_data(resources, output)
