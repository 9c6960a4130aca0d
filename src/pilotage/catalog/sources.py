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


@dataclass(frozen=True, slots=True)
class WebSource:
    """A file of a web server, and the digest that it must have."""

    url: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


@dataclass(frozen=True, slots=True)
class BucketSource:
    """An object of an S3 bucket, or all objects under a key that ends with a slash."""

    bucket: str
    key: str

    @property
    def is_folder(self) -> bool:
        """It names all objects under its key."""
        return self.key.endswith("/")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """An artifact in an OCI registry, or one file of it. `reference` is a tag or a digest."""

    registry: str
    repository: str
    reference: str
    file: str | None

    def __str__(self) -> str:
        joint = "@" if self.reference.startswith("sha256:") else ":"
        file = f"#{self.file}" if self.file else ""
        return f"oci://{self.registry}/{self.repository}{joint}{self.reference}{file}"


ModelSource = PackageSource | FileSource | HubSource | WebSource | BucketSource | RegistrySource

FORMS = {
    "pypi": "pypi://PACKAGE@VERSION/PATH-IN-WHEEL",
    "file": "file:///ABSOLUTE/PATH",
    "hf": "hf://OWNER/NAME[@REVISION][#FILE]",
    "https": "https://HOST/PATH#sha256=DIGEST",
    "s3": "s3://BUCKET/KEY, or s3://BUCKET/FOLDER/",
    "oci": "oci://REGISTRY/REPOSITORY[:TAG|@sha256:DIGEST][#FILE]",
}
PACKAGE = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<path>.+)")
WEB = re.compile(r"(?P<address>[^/#@\s]+/[^#\s]*[^#/\s])#sha256=(?P<sha256>[0-9a-fA-F]{64})")
BUCKET = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>\S+)")
PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
REGISTRY = re.compile(
    rf"(?P<registry>[A-Za-z0-9.-]+(?::\d+)?)/(?P<repository>{PART}(?:/{PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?(?:#(?P<file>\S+))?"
)
HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^#@\s]+))?(?:#(?P<file>\S+))?")


def parse_source(text: str) -> ModelSource:
    """The source that `text` names.

    Raises SourceError, with the form expected, when it names none.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in FORMS:
        raise SourceError(f"{text!r} is no model source", hint=f"write {_nearest_form(scheme)}")
    forms = {"pypi": _package, "file": _file, "hf": _hub, "https": _web, "s3": _bucket, "oci": _registry}
    source = forms[scheme](rest)
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


def _web(rest: str) -> WebSource | None:
    found = WEB.fullmatch(rest)
    return WebSource(f"https://{found['address']}", found["sha256"].lower()) if found else None


def _bucket(rest: str) -> BucketSource | None:
    found = BUCKET.fullmatch(rest)
    return BucketSource(found["bucket"], found["key"]) if found and _stays_inside(found["key"]) else None


def _registry(rest: str) -> RegistrySource | None:
    found = REGISTRY.fullmatch(rest)
    if not found or (found["file"] and not _stays_inside(found["file"])):
        return None
    reference = found["digest"] or found["tag"] or "latest"
    return RegistrySource(found["registry"], found["repository"], reference, found["file"])


def _stays_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _nearest_form(scheme: str) -> str:
    near = difflib.get_close_matches(scheme, FORMS, n=1, cutoff=0.4)
    return FORMS[near[0]] if near else "one of " + ", ".join(FORMS.values())
