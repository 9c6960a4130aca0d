"""Where a model's weights come from, as a value."""

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pilotage.errors import Invalid


class SourceError(Invalid, ValueError):
    """A model source that can't be understood. A ValueError too, which is how a schema's validators refuse."""

    condition_reason = "InvalidSource"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """One file inside a wheel of a Python package index."""

    package: str
    version: str
    path: PurePosixPath

    def __str__(self) -> str:
        return f"pypi://{self.package}@{self.version}/{self.path}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder of this machine, by absolute path."""

    path: PurePosixPath

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub, or one file of it."""

    repository: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        file = f"#{self.file}" if self.file else ""
        return f"hf://{self.repository}{revision}{file}"


ModelSource = PackageSource | FileSource | HubSource

FORMS = {
    "pypi": "pypi://PACKAGE@VERSION/PATH-IN-WHEEL",
    "file": "file:///ABSOLUTE/PATH",
    "hf": "hf://OWNER/NAME[@REVISION][#FILE]",
}
PACKAGE = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<path>.+)")
HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^#@\s]+))?(?:#(?P<file>\S+))?")


def parse_source(text: str) -> ModelSource:
    """The source that `text` names.

    Raises SourceError, with the form expected, when it names none.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in FORMS:
        raise SourceError(f"{text!r} is no model source", hint=f"write {_nearest_form(scheme)}")
    source = {"pypi": _package, "file": _file, "hf": _hub}[scheme](rest)
    if source is None:
        raise SourceError(f"{text!r} is not of the form {FORMS[scheme]}", hint=f"write {FORMS[scheme]}")
    return source


def _package(rest: str) -> PackageSource | None:
    found = PACKAGE.fullmatch(rest)
    if not found or not _stays_inside(found["path"]):
        return None
    return PackageSource(found["package"], found["version"], PurePosixPath(found["path"]))


def _file(rest: str) -> FileSource | None:
    return FileSource(PurePosixPath(rest)) if rest.startswith("/") else None


def _hub(rest: str) -> HubSource | None:
    found = HUB.fullmatch(rest)
    if not found or (found["file"] and not _stays_inside(found["file"])):
        return None
    return HubSource(found["repository"], found["revision"], found["file"])


def _stays_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _nearest_form(scheme: str) -> str:
    near = difflib.get_close_matches(scheme, FORMS, n=1, cutoff=0.4)
    return FORMS[near[0]] if near else "one of " + ", ".join(FORMS.values())
