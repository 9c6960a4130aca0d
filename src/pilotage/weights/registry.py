"""Files of an OCI artifact: what ORAS, KitOps and ModelPack push, by the distribution protocol.

oras-py was tried and left: it tells 401 from 404 by text only, goes on with no broken download, believes a blob whose
digest is wrong, and reads no DOCKER_CONFIG (docs/decisions/0005).
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from pilotage.catalog import RegistrySource
from pilotage.errors import Invalid
from pilotage.weights.problems import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    RateLimited,
    SourceUnreachable,
    TokenNeeded,
    UnsafeName,
    WeightsError,
)
from pilotage.weights.remote import RemoteFile, fetch_files
from pilotage.weights.store import StoredFile, WeightsStore

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ACCEPTED = ", ".join(
    (
        OCI_MANIFEST,
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
LARGEST_MANIFEST_BYTES = 4 * 1024 * 1024
# Where a layer's name stands: ORAS and KitOps, ModelPack, ModelPack's older drafts.
NAMES = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def fetch_from_registry(
    source: RegistrySource,
    *,
    token: str | None,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[str, tuple[StoredFile, ...]]:
    """The source with its digest fixed, and its files, in the store.

    `token` is USER:PASSWORD; without it Docker's own configuration is asked.
    """
    registry = _Registry(source, token)
    with httpx.Client(timeout=30, follow_redirects=True) as client:
        try:
            manifest, digest = registry.manifest(client, source.reference)
            if "manifests" in manifest:
                manifest, digest = registry.manifest(client, _chosen(manifest["manifests"], source))
        except httpx.HTTPError as error:
            raise SourceUnreachable(
                f"{source} can't be reached: {type(error).__name__}",
                hint="check the network, its proxy and the registry",
            ) from error
        files = [registry.file(client, layer, path) for layer, path in _layers(manifest, source)]
        resolved = str(RegistrySource(source.registry, source.repository, digest, source.file))
        return resolved, fetch_files(files, shown_as=str(source), store=store, entry_id=entry_id, progress=progress)


class _Registry:
    """One repository of a registry, and what opens it."""

    def __init__(self, source: RegistrySource, token: str | None) -> None:
        self._source = source
        host = source.registry.rpartition(":")[0] or source.registry
        # As Docker does it: plain HTTP on this machine only.
        self._base = f"{'http' if host in LOOPBACK else 'https'}://{source.registry}/v2/{source.repository}"
        self._credentials = _pair(token) if token else _docker_credentials(source.registry)
        self._authorization: str | None = None

    def manifest(self, client: httpx.Client, reference: str) -> tuple[dict[str, Any], str]:
        """The manifest called by a tag or digest, and its digest."""
        response = self._get(client, f"manifests/{reference}", {"accept": ACCEPTED})
        body = response.content
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        expected = (
            reference if reference.startswith("sha256:") else response.headers.get("docker-content-digest", digest)
        )
        if expected != digest:
            raise DigestMismatch(str(self._source), expected=expected[7:], found=digest[7:])
        try:
            return dict(json.loads(body)), digest
        except ValueError as error:
            raise WeightsError(f"{self._source} has a manifest that is no JSON", hint="check the registry") from error

    def file(self, client: httpx.Client, layer: dict[str, Any], path: PurePosixPath) -> RemoteFile:
        """A layer as a file to fetch."""
        tries = [0]

        def request() -> tuple[str, dict[str, str]]:
            tries[0] += 1
            if tries[0] > 1 and self._authorization:
                # A token ends within minutes, and a fetch takes longer: the next try asks for another.
                self._authorize(client, self._head(client, layer))
            return f"{self._base}/blobs/{layer['digest']}", self._headers({})

        return RemoteFile(
            path=path, size_bytes=layer.get("size"), sha256=layer["digest"].removeprefix("sha256:"), request=request
        )

    def _head(self, client: httpx.Client, layer: dict[str, Any]) -> httpx.Response:
        return client.head(f"{self._base}/blobs/{layer['digest']}")

    def _get(self, client: httpx.Client, path: str, headers: dict[str, str]) -> httpx.Response:
        response = self._read(client, f"{self._base}/{path}", headers=self._headers(headers))
        if response.status_code == 401:
            self._authorize(client, response)
            response = self._read(client, f"{self._base}/{path}", headers=self._headers(headers))
        source = str(self._source)
        match response.status_code:
            case 200:
                return response
            case 401 | 403:
                raise AccessDenied(source, gated=False) if self._credentials else TokenNeeded(source)
            case 404:
                raise NotFound(f"{source} does not exist", hint="check the repository and its tag")
            case 429:
                raise RateLimited(source)
            case status:
                raise SourceUnreachable(
                    f"{source} answers {status}", hint="the registry has a problem; try again later"
                )

    def _read(self, client: httpx.Client, url: str, **more: Any) -> httpx.Response:
        """A small answer, read no further than it may be long."""
        request = client.build_request("GET", url, **{key: more[key] for key in more if key != "auth"})
        request.headers["accept-encoding"] = "identity"
        response = client.send(request, stream=True, auth=more.get("auth"))
        body = b""
        try:
            for part in response.iter_raw():
                body += part
                if len(body) > LARGEST_MANIFEST_BYTES:
                    raise WeightsError(f"{self._source}: an answer of more than 4 MB", hint="it is no model's manifest")
        finally:
            response.close()
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=request)

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        return {**more, **({"authorization": self._authorization} if self._authorization else {})}

    def _authorize(self, client: httpx.Client, refused: httpx.Response) -> None:
        scheme, _, rest = refused.headers.get("www-authenticate", "").partition(" ")
        said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        source = str(self._source)
        if scheme.lower() == "basic":
            if self._credentials is None:
                raise TokenNeeded(source)
            self._authorization = "Basic " + base64.b64encode(":".join(self._credentials).encode()).decode()
        elif scheme.lower() == "bearer" and "realm" in said:
            scope = said.get("scope") or f"repository:{self._source.repository}:pull"
            params = {"service": said.get("service", ""), "scope": scope}
            answer = self._read(client, said["realm"], params=params, auth=self._credentials)
            if answer.status_code in (400, 401, 403):
                raise AccessDenied(source, gated=False) if self._credentials else TokenNeeded(source)
            if answer.status_code != 200:
                raise SourceUnreachable(
                    f"{source}: its token server answers {answer.status_code}", hint="try again later"
                )
            token = answer.json()
            self._authorization = f"Bearer {token.get('token') or token['access_token']}"


def _layers(manifest: dict[str, Any], source: RegistrySource) -> list[tuple[dict[str, Any], PurePosixPath]]:
    """The layers that are files, with the paths that they say."""
    config_type = manifest.get("config", {}).get("mediaType", "")
    found = []
    for layer in manifest.get("layers", []):
        said = layer.get("annotations") or {}
        name = next((said[key] for key in NAMES if key in said), None)
        if name is None:
            continue
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
            raise UnsafeName(name)
        if not _is_plain(layer, config_type):
            raise Invalid(
                f"{source} packs {name} as {layer['mediaType']}",
                hint="push the weights as plain files, not as archives",
            )
        found.append((layer, path))
    if source.file:
        chosen = [(layer, path) for layer, path in found if str(path) == source.file]
        if not chosen:
            raise NotFound(
                f"{source} holds no {source.file}", hint=f"it holds {', '.join(str(p) for _, p in found[:12])}"
            )
        return chosen
    if not found:
        raise NotFound(f"{source} holds no named files", hint="it is an image, or was pushed without file names")
    return found


def _is_plain(layer: dict[str, Any], config_type: str) -> bool:
    """The blob is the file. ORAS says `image.layer.v1.tar` of plain files, so an artifact's own type says nothing."""
    media_type, said = layer.get("mediaType", ""), layer.get("annotations") or {}
    if said.get("io.deis.oras.content.unpack") == "true":
        return False
    if config_type not in IMAGE_CONFIGS and media_type.startswith("application/vnd.oci.image.layer."):
        return True
    return not re.search(r"[.+]tar([.+]|$)", media_type.partition(";")[0])


def _chosen(manifests: list[dict[str, Any]], source: RegistrySource) -> str:
    if len(manifests) == 1:
        return str(manifests[0]["digest"])
    for manifest in manifests:
        platform = manifest.get("platform", {})
        if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
            return str(manifest["digest"])
    raise NotFound(
        f"{source} is {len(manifests)} artifacts, none of them for linux/amd64", hint="name one by @sha256:..."
    )


def _pair(token: str) -> tuple[str, str]:
    user, separator, password = token.partition(":")
    if not separator:
        raise Invalid("the secret for an oci:// source is not understood", hint="write USER:PASSWORD into it")
    return user, password


def _docker_credentials(registry: str) -> tuple[str, str] | None:
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        entries = json.loads((folder / "config.json").read_bytes()).get("auths", {})
    except (OSError, ValueError):
        return None
    for name, entry in entries.items():
        if re.sub(r"^https?://", "", name).split("/")[0] == registry and entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return user, password
    return None
