"""Resources out of YAML files, or every mistake in them with its line."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pilotage.api.llmgateway import LLMGateway
from pilotage.api.llmservice import LLMService
from pilotage.errors import Invalid, PilotageError

KINDS: dict[str, type[LLMService] | type[LLMGateway]] = {"LLMService": LLMService, "LLMGateway": LLMGateway}
Resource = LLMService | LLMGateway


@dataclass(frozen=True, slots=True)
class FileProblem:
    """One mistake in a file, as an editor or a person wants it."""

    file: str
    line: int
    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " + (f"{self.field}: " if self.field else "")
        return where + self.message + (f" ({self.hint})" if self.hint else "")


class InvalidResources(Invalid):
    """Files with mistakes; `problems` has all of them, in the order of the files."""

    condition_reason = "InvalidFile"

    def __init__(self, problems: Iterable[FileProblem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} mistake{'s' if count > 1 else ''}; nothing was started",
            hint="`pilotage validate FILE` only checks; docs/reference.md lists every field",
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A resource and where it stands."""

    resource: Resource
    file: str
    lines: Mapping[tuple[str | int, ...], int]

    def line_of(self, path: tuple[str | int, ...]) -> int:
        """The line of the field at `path`, or of the nearest field above it."""
        return _line_of(self.lines, path)


def load_documents(files: Iterable[tuple[str, str]]) -> list[Document]:
    """The resources in `files`, pairs of name and text, each holding any number of YAML documents.

    Raises InvalidResources with every mistake of every file.
    """
    documents: list[Document] = []
    problems: list[FileProblem] = []
    for file, text in files:
        for outcome in _read(file, text):
            (problems if isinstance(outcome, FileProblem) else documents).append(outcome)  # type: ignore[arg-type]
    problems.extend(_repeated(documents))
    if problems:
        raise InvalidResources(problems)
    return documents


def read_files(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Names and texts of `paths`. Raises Invalid for one that can't be read."""
    texts = []
    for path in paths:
        try:
            texts.append((str(path), path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise Invalid(f"{path} can't be read: {reason}", hint="give the path of a YAML file") from error
    return texts


def _read(file: str, text: str) -> Iterator[Document | FileProblem]:
    yaml = YAML(typ="rt", pure=True)
    found = False
    try:
        for content in yaml.load_all(text):
            if content is None:
                continue
            found = True
            yield from _validate(file, content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = str(error.problem or error.context or "not YAML").strip().splitlines()[0]
        yield FileProblem(file, (mark.line if mark else 0) + 1, "", message, "the file must be valid YAML 1.2")
        return
    except YAMLError as error:
        yield FileProblem(file, 1, "", str(error).splitlines()[0], "the file must be valid YAML 1.2")
        return
    if not found:
        yield FileProblem(file, 1, "", "the file holds no resource", f"write one of kind {' or '.join(KINDS)}")


def _validate(file: str, content: object) -> Iterator[Document | FileProblem]:
    if not isinstance(content, CommentedMap):
        yield FileProblem(file, 1, "", "expected a resource with apiVersion, kind, metadata and spec")
        return
    lines = dict(_lines(content, ()))
    kind = content.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        said = f"{kind!r} is no kind known here" if "kind" in content else "required field is missing"
        near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.5) or [" or ".join(KINDS)]
        yield FileProblem(file, _line_of(lines, ("kind",)), "kind", said, f"write {near[0]}")
        return
    plain = _plain(content)
    missing_version = "apiVersion" not in plain
    if missing_version:
        yield FileProblem(
            file, _line_of(lines, ()), "apiVersion", "required field is missing", "write pilotage.io/v1alpha1"
        )
    try:
        # As JSON: strict validation takes an enumeration's word there, as in any client of Kubernetes.
        resource = model.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            yield _problem(file, lines, model, dict(entry))
        return
    if not missing_version:
        yield Document(resource, file, lines)


def _problem(
    file: str, lines: Mapping[tuple[str | int, ...], int], model: type[BaseModel], entry: dict[str, Any]
) -> FileProblem:
    path = tuple(entry["loc"])
    message, hint = _said(entry, model, path)
    return FileProblem(file, _line_of(lines, path), _field(path), message, hint)


def _said(entry: dict[str, Any], model: type[BaseModel], path: tuple[str | int, ...]) -> tuple[str, str]:
    context = entry.get("ctx", {})
    match entry["type"]:
        case "extra_forbidden":
            names = _names_at(model, path[:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
            return "unknown field", f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
        case "missing":
            return "required field is missing", ""
        case "enum" | "literal_error":
            expected = str(context["expected"])
            words = [word.strip("' ") for word in expected.replace(" or ", ",").split(",")]
            near = difflib.get_close_matches(str(entry["input"]), words, n=1, cutoff=0.5)
            return f"expected {expected}, found {entry['input']!r}", f"did you mean {near[0]}?" if near else ""
        case "value_error":
            error = context.get("error")
            return str(error), error.hint if isinstance(error, PilotageError) else ""
        case "string_pattern_mismatch":
            return f"{entry['input']!r} does not match {context['pattern']}", ""
        case _:
            message = str(entry["msg"]).removeprefix("Input ").removeprefix("should be ")
            return f"expected {message}, found {entry['input']!r}", ""


def _names_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Names of the fields that may stand at `path` of `model`."""
    for step in path:
        if isinstance(step, int):
            continue
        field = next((f for n, f in model.model_fields.items() if step in (f.alias, n)), None)
        inner = _model_in(field) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(field: FieldInfo) -> type[BaseModel] | None:
    """The model that `field` holds: itself, optional, or in a list."""
    pending = [field.annotation]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        pending.extend(get_args(kind))
    return None


def _repeated(documents: list[Document]) -> Iterator[FileProblem]:
    seen: dict[tuple[str, str, str], Document] = {}
    gateways = [document for document in documents if isinstance(document.resource, LLMGateway)]
    for document in documents:
        meta = document.resource.metadata
        identity = (document.resource.kind, meta.namespace, meta.name)
        line = document.line_of(("metadata", "name"))
        if identity in seen:
            first = seen[identity]
            said = f"{meta.name!r} stands in {first.file}:{first.line_of(('metadata', 'name'))} already"
            yield FileProblem(document.file, line, "metadata.name", said, "give each object a name of its own")
        seen[identity] = document
    for extra in gateways[1:]:
        yield FileProblem(
            extra.file, extra.line_of(("kind",)), "kind", "one machine has one LLMGateway", "keep one of them"
        )


def _lines(content: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(content, CommentedMap):
        yield path, content.lc.line + 1
        for key, value in content.items():
            yield (*path, key), _line_of_key(content, key)
            yield from ((p, n) for p, n in _lines(value, (*path, key)) if p != (*path, key))
    elif isinstance(content, CommentedSeq):
        yield path, content.lc.line + 1
        for index, value in enumerate(content):
            yield (*path, index), content.lc.item(index)[0] + 1
            yield from ((p, n) for p, n in _lines(value, (*path, index)) if p != (*path, index))


def _line_of_key(content: CommentedMap, key: object) -> int:
    try:
        return int(content.lc.key(key)[0]) + 1
    except (KeyError, TypeError):
        # It came by a merge key (<<) from somewhere else.
        return int(content.lc.line) + 1


def _line_of(lines: Mapping[tuple[str | int, ...], int], path: tuple[str | int, ...]) -> int:
    while path not in lines and path:
        path = path[:-1]
    return lines.get(path, 1)


def _field(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _plain(value: object) -> Any:
    """`value` with ruamel's own types replaced by Python's, so that strict validation knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
