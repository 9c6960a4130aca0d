"""Files of a Hugging Face repository, through huggingface_hub."""

import errno
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NoReturn

from pilotage.catalog import HubSource
from pilotage.weights.problems import AccessDenied, NotFound, RateLimited, SourceUnreachable, TokenNeeded
from pilotage.weights.store import StoredFile, WeightsStore

# The same weights once more, for other software.
OTHER_FORMATS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite")


def fetch_from_hub(
    source: HubSource,
    *,
    token: str | None,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[str, tuple[StoredFile, ...]]:
    """The source with its commit fixed, and its file, in the store.

    A token is given to the hub's own client only; it stands in no error and no log.
    """
    # The client reads the environment when it is imported; its own progress bars would go to the daemon's log.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Read here and not at import: the environment says where the hub is.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token or False)
    shown = str(source)
    try:
        info = api.model_info(source.repository, revision=source.revision, files_metadata=True)
        commit = info.sha or source.revision or "main"
        sizes = {entry.rfilename: entry for entry in info.siblings or []}
        names = _chosen(source, list(sizes))
        total_bytes = sum(sizes[name].size or 0 for name in names)
        folder = store.partial(entry_id)
        here_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        store.require_space(max(0, total_bytes - here_bytes))
        done_bytes = 0
        # One after another: the hub's client fetches the parts of each at once.
        for name in names:
            reporter = _reporter(progress, total_bytes, before_bytes=done_bytes)
            api.hf_hub_download(source.repository, name, revision=commit, local_dir=folder, tqdm_class=reporter)
            done_bytes += sizes[name].size or 0
    except HfHubHTTPError as error:
        _translate(error, source, token)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceUnreachable(
            f"{shown} can't be reached: {type(error).__name__}", hint="check the network, its proxy and HF_ENDPOINT"
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "httpx2", "httpcore2", "requests"):
            raise
        raise SourceUnreachable(
            f"{shown} can't be reached: {type(error).__name__}", hint="check the network, its proxy and HF_ENDPOINT"
        ) from error
    resolved = str(HubSource(source.repository, commit, names[0] if len(names) == 1 else None))
    files = []
    for name in names:
        lfs = sizes[name].lfs
        path = PurePosixPath(PurePosixPath(name).name) if len(names) == 1 else PurePosixPath(name)
        expected = lfs.sha256 if lfs else None
        files.append(store.verify(folder / name, entry_id=entry_id, path=path, expected_sha256=expected))
    return resolved, tuple(files)


def _chosen(source: HubSource, names: list[str]) -> list[str]:
    """The one file that is named, the only GGUF, or a safetensors model with all that belongs to it."""
    if source.file:
        if source.file in names:
            return [source.file]
        raise NotFound(f"{source.repository} holds no {source.file}", hint=_choices(names))
    candidates = [name for name in names if name.endswith(".gguf")]
    if len(candidates) == 1:
        return candidates
    if not candidates and "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return [name for name in names if not name.endswith(OTHER_FORMATS) and not name.startswith(".")]
    said = f"{len(candidates)} GGUF files" if candidates else "no GGUF file"
    raise NotFound(f"{source.repository} holds {said}", hint=_choices(names))


def _choices(names: list[str]) -> str:
    weights = [name for name in names if name.endswith((".gguf", ".safetensors"))]
    return f"name one as #FILE: {', '.join(weights[:12])}" if weights else "it holds no weights that can be served"


def _translate(error: Any, source: HubSource, token: str | None) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    shown = str(source)
    if isinstance(error, GatedRepoError):
        raise (AccessDenied(shown, gated=True) if token else TokenNeeded(shown)) from None
    if isinstance(error, RevisionNotFoundError):
        raise NotFound(
            f"{source.repository} has no revision {source.revision}", hint="check the branch, tag or commit"
        ) from None
    if status == 429:
        raise RateLimited(shown) from None
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        if not token:
            raise TokenNeeded(shown) from None
        if isinstance(error, RepositoryNotFoundError) and status == 404:
            raise NotFound(f"{source.repository} does not exist", hint="check the repository's name") from None
        raise AccessDenied(shown, gated=False) from None
    if status == 404:
        raise NotFound(f"{shown} does not exist", hint="check its name") from None
    raise SourceUnreachable(f"{shown} answers {status}", hint="the hub has a problem; try again later") from None


def _reporter(progress: Callable[[int, int | None], None], size_bytes: int | None, *, before_bytes: int) -> Any:
    """A tqdm that reports instead of drawing."""
    from tqdm.auto import tqdm

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self._done = before_bytes + int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            progress(self._done, size_bytes)

    return Reporter
