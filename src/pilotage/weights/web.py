"""A file of a web server, by its URL and digest."""

from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from pilotage.catalog import WebSource
from pilotage.weights.remote import RemoteFile, fetch_files
from pilotage.weights.store import StoredFile, WeightsStore


def fetch_from_web(
    source: WebSource,
    *,
    token: str | None,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[str, tuple[StoredFile, ...]]:
    """The source and its file, in the store. `token` is sent as a bearer token."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    name = PurePosixPath(unquote(urlsplit(source.url).path)).name
    file = RemoteFile(
        path=PurePosixPath(name), size_bytes=None, sha256=source.sha256, request=lambda: (source.url, headers)
    )
    return str(source), fetch_files([file], shown_as=source.url, store=store, entry_id=entry_id, progress=progress)
