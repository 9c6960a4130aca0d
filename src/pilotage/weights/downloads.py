"""One file over HTTP, going on where the last try broke off."""

import ssl
from collections.abc import Callable
from pathlib import Path

import httpx

from pilotage.weights.problems import AccessDenied, NotFound, RateLimited, SourceUnreachable, TokenNeeded

# A URL and headers, made anew for each try.
RequestOf = Callable[[], tuple[str, dict[str, str]]]

TRIES = 5
# No limit on the whole: a model takes as long as it takes. A connection that is silent this long is taken up anew.
TIMEOUT = httpx.Timeout(30.0)


def download(
    request: RequestOf,
    target: Path,
    *,
    shown_as: str,
    certificates: str | None = None,
    proxy: str | None = None,
    before: Callable[[int], None],
    progress: Callable[[int, int | None], None],
) -> None:
    """Bring what `request` asks for to `target`, appending to what is there already.

    `before(left_bytes)` is called once the size is known and may raise; `progress(done_bytes, size_bytes)` as bytes
    come. Raises NotFound, TokenNeeded, AccessDenied, RateLimited or SourceUnreachable; `shown_as` stands for the URL,
    which may hold credentials.
    """
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=certificates) if certificates else True
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True, verify=verify, proxy=proxy) as client:
        for attempt in range(1, TRIES + 1):
            try:
                if _fetch(client, request, target, shown_as=shown_as, before=before, progress=progress):
                    return
            except AccessDenied:
                # A signature or token may have ended since it was made; a fresh one that is refused is the answer.
                if attempt > 1:
                    raise
            except httpx.HTTPError as error:
                if attempt == TRIES:
                    raise SourceUnreachable(
                        f"{shown_as} broke off {TRIES} times: {type(error).__name__}: {error}",
                        hint="check the network and its proxy; what has come is kept, and the next try goes on",
                    ) from error
    raise SourceUnreachable(f"{shown_as} ended too early {TRIES} times", hint="check the network and its proxy")


def _fetch(
    client: httpx.Client,
    request: RequestOf,
    target: Path,
    *,
    shown_as: str,
    before: Callable[[int], None],
    progress: Callable[[int, int | None], None],
) -> bool:
    have_bytes = target.stat().st_size if target.exists() else 0
    # An encoded body would make byte ranges and sizes mean something else.
    url, more = request()
    headers = {"accept-encoding": "identity", **({"range": f"bytes={have_bytes}-"} if have_bytes else {}), **more}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            # Nothing is left to send; the digest says whether that is right.
            return True
        if response.status_code == 412:
            target.unlink(missing_ok=True)
            raise SourceUnreachable(f"{shown_as} was changed while it was fetched", hint="it is fetched anew")
        _require_success(response, shown_as, has_credentials="authorization" in more or "Signature=" in url)
        if have_bytes and response.status_code != 206:
            have_bytes = 0
        length = response.headers.get("content-length")
        size_bytes = have_bytes + int(length) if length else None
        before((size_bytes or 0) - have_bytes)
        with target.open("ab" if have_bytes else "wb") as file:
            # As they come off the wire: chunks put together would be lost with the connection.
            for chunk in response.iter_raw():
                file.write(chunk)
                have_bytes += len(chunk)
                progress(have_bytes, size_bytes)
    return size_bytes is None or have_bytes >= size_bytes


def _require_success(response: httpx.Response, shown_as: str, *, has_credentials: bool) -> None:
    match response.status_code:
        case 200 | 206:
            return
        case 401 | 403:
            raise AccessDenied(shown_as, gated=False) if has_credentials else TokenNeeded(shown_as)
        case 404 | 410:
            raise NotFound(f"{shown_as} answers {response.status_code}", hint="check the source's name and your access")
        case 429:
            raise RateLimited(shown_as)
        case status:
            # Tried again, as a connection that breaks is.
            raise httpx.HTTPStatusError(f"status {status}", request=response.request, response=response)
