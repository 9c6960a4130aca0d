"""A package index and a model hub on loopback, which speak the real protocols and fail on demand."""

import hashlib
import io
import json
import ssl
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(handle: Handler, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose GET and HEAD are `handle`; gives its address."""

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            handle(self)

        def do_HEAD(self) -> None:
            handle(self)

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Clients that are killed in the middle are part of the tests."""

    server = Server(("127.0.0.1", 0), Requests)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


def ranged(request: BaseHTTPRequestHandler, data: bytes, *, cut_after: int | None = None, **headers: str) -> None:
    """`data` with byte ranges; the connection breaks after `cut_after` bytes of the answer."""
    start = 0
    wanted = request.headers.get("range")
    if wanted:
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            reply(request, 416, b"")
            return
    part = data[start:]
    request.send_response(206 if wanted else 200)
    if wanted:
        request.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("content-length", str(len(part)))
    request.end_headers()
    if request.command != "GET":
        return
    request.wfile.write(part if cut_after is None else part[:cut_after])
    if cut_after is not None and cut_after < len(part):
        request.wfile.flush()
        request.close_connection = True
        request.connection.close()


def wheel(package: str, version: str, files: dict[str, bytes]) -> bytes:
    """A wheel with these files."""
    info = f"{package}-{version}.dist-info"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return data.getvalue()


class Index:
    """A package index with one wheel."""

    def __init__(self, package: str, version: str, data: bytes) -> None:
        self.name = f"{package}-{version}-py3-none-any.whl"
        self.package = package
        self.data = data
        self.digest = hashlib.sha256(data).hexdigest()
        self.downloads: list[str | None] = []
        self.cuts: list[int] = []
        self.on_download: Callable[[], None] = lambda: None
        # As PyPI does (PEP 658); an index that does not makes pip fetch the wheel to see its metadata.
        self.serves_metadata = True

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith(".metadata"):
            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                name = next(n for n in archive.namelist() if n.endswith("/METADATA"))
                reply(request, 200, archive.read(name))
        elif request.path.endswith(".whl"):
            if request.command == "GET":
                self.downloads.append(request.headers.get("range"))
                self.on_download()
            ranged(request, self.data, cut_after=self.cuts.pop(0) if self.cuts and request.command == "GET" else None)
        elif request.path == f"/{self.package}/":
            metadata = ' data-core-metadata="true"' if self.serves_metadata else ""
            page = f'<a href="/files/{self.name}#sha256={self.digest}"{metadata}>{self.name}</a>'
            reply(request, 200, page.encode(), content_type="text/html")
        else:
            reply(request, 404, b"")


class Hub:
    """A model hub with one repository of one file; `refuse` makes it answer like the real one does."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.refuse: tuple[int, str] | None = None
        self.tokens: list[str | None] = []
        self.wrong_digest = False

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.tokens.append(request.headers.get("authorization"))
        if self.refuse:
            status, code = self.refuse
            headers = {"x_error_code": code} if code else {}
            reply(request, status, b"{}", **headers)
        elif request.path.startswith("/api/models/"):
            siblings = [
                {"rfilename": name, "size": len(data), "lfs": self._lfs(data)} for name, data in self.files.items()
            ]
            said = {
                "id": "own/tiny",
                "modelId": "own/tiny",
                "sha": "c" * 40,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            reply(request, 200, json.dumps(said).encode(), content_type="application/json")
        else:
            name = request.path.partition("/resolve/")[2].partition("/")[2]
            data = self.files[name]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            ranged(request, data, etag=etag, x_repo_commit="c" * 40, x_linked_size=str(len(data)), x_linked_etag=etag)

    def _lfs(self, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(b"other" if self.wrong_digest else data).hexdigest()
        return {"sha256": digest, "size": len(data), "pointerSize": 130}
