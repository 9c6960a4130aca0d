"""Weights from S3, OCI registries and web servers: fetched once, resumed, verified, and every refusal with its reason."""

import base64
import hashlib
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path, PurePosixPath

import httpx
import pytest

from pilotage.catalog import parse_source
from pilotage.clock import SystemClock
from pilotage.errors import Invalid
from pilotage.weights import (
    AccessDenied,
    DigestMismatch,
    Fetched,
    NotEnoughDisk,
    NotFound,
    Progress,
    SourceUnreachable,
    TokenNeeded,
    WeightsStore,
    ensure,
)
from pilotage.weights.problems import UnsafeName
from pilotage.weights.remote import RemoteFile, fetch_files
from tests.weights.servers import ranged, reply, serving
from tests.with_sources.conftest import KEY, SECRET, Bucket, Registry

MODEL = random.Random(1).randbytes(5_000_000)
SHA = hashlib.sha256(MODEL).hexdigest()
TOKEN = f"{KEY}:{SECRET}"


def fetch(root: Path, source: str, **more: object) -> Fetched:
    return ensure(parse_source(source), store=WeightsStore(root / "store"), clock=SystemClock(), **more)  # type: ignore[arg-type]


# S3 -------------------------------------------------------------------------------------------------------------------


def test_an_object_is_fetched_verified_and_then_served_without_any_network(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bucket.put("qwen/m.gguf", MODEL)
    told: list[Progress] = []
    found = fetch(tmp_path, "s3://models/qwen/m.gguf", token=TOKEN, progress=told.append)
    assert found.path.read_bytes() == MODEL
    assert found.digest == SHA
    assert told[-1] == Progress(len(MODEL), len(MODEL))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert fetch(tmp_path, "s3://models/qwen/m.gguf").was_cached


def test_a_folder_is_fetched_whole(bucket: Bucket, tmp_path: Path):
    files = {f"model-{n:05}.safetensors": random.Random(n).randbytes(200_000) for n in range(7)} | {
        "config.json": b"{}"
    }
    for name, data in files.items():
        bucket.put(f"qwen/{name}", data)
    bucket.put("qwen-other/x", b"not this")
    found = fetch(tmp_path, "s3://models/qwen/", token=TOKEN)
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == files


@pytest.mark.parametrize("name", ["/etc/evil.gguf", "../evil.gguf", "a/../../evil.gguf"])
def test_a_file_whose_name_leads_out_of_the_store_is_refused(tmp_path: Path, name: str):
    with serving(lambda request: ranged(request, b"evil")) as url:
        evil = RemoteFile(path=PurePosixPath(name), size_bytes=None, sha256=None, request=lambda: (url, {}))
        with pytest.raises(UnsafeName):
            fetch_files(
                [evil], shown_as="x", store=WeightsStore(tmp_path / "s"), entry_id="e", progress=lambda *_: None
            )
    assert not list(tmp_path.rglob("evil.gguf"))


def test_what_was_changed_on_the_server_is_thrown_away(bucket: Bucket, tmp_path: Path):
    bucket.put("m.gguf", MODEL)
    (bucket.folder / "m.gguf").write_bytes(b"x" * len(MODEL))
    with pytest.raises(DigestMismatch):
        fetch(tmp_path, "s3://models/m.gguf", token=TOKEN)


@pytest.mark.parametrize(
    ("source", "token", "kind"),
    [
        ("s3://nothing/m.gguf", TOKEN, NotFound), ("s3://models/missing.gguf", TOKEN, NotFound),
        ("s3://models/missing/", TOKEN, NotFound), ("s3://models/m.gguf", None, TokenNeeded),
        ("s3://models/m.gguf", f"{KEY}:wrong", AccessDenied), ("s3://models/m.gguf", "nobody:wrong", AccessDenied),
        ("s3://models/m.gguf", "no-colon", Invalid),
    ],
)  # fmt: skip
def test_each_refusal_of_a_bucket_has_its_own_reason(
    bucket: Bucket, tmp_path: Path, source: str, token: str | None, kind: type[Exception]
):
    bucket.put("m.gguf", MODEL)
    with pytest.raises(kind) as raised:
        fetch(tmp_path, source, token=token)
    assert "wrong" not in f"{raised.value}{raised.value.hint}"  # type: ignore[attr-defined]


def test_a_bucket_that_is_open_to_all_needs_no_secret(bucket: Bucket, tmp_path: Path):
    bucket.put("m.gguf", MODEL)
    statement = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"],
                 "Resource": ["arn:aws:s3:::models", "arn:aws:s3:::models/*"]}  # fmt: skip
    bucket.client.put_bucket_policy(Bucket="models", Policy=json.dumps({"Statement": [statement]}))
    assert fetch(tmp_path, "s3://models/m.gguf").digest == SHA


def test_a_bucket_out_of_reach_is_said(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceUnreachable, match="can't be reached"):
        fetch(tmp_path, "s3://models/m.gguf", token=TOKEN)


# OCI ------------------------------------------------------------------------------------------------------------------


def test_an_artifact_is_fetched_by_its_tag_and_kept_by_its_digest(registry: Registry, tmp_path: Path):
    digest = registry.push("team/qwen", {"m.gguf": MODEL, "README.md": b"read me"})
    found = fetch(tmp_path, f"oci://{registry.address}/team/qwen:v1")
    # The one GGUF among the files is what an engine is given.
    assert found.path.name == "m.gguf"
    assert found.path.read_bytes() == MODEL
    assert (found.path.parent / "README.md").read_bytes() == b"read me"
    assert found.resolved == f"oci://{registry.address}/team/qwen@{digest}"
    one = fetch(tmp_path, f"oci://{registry.address}/team/qwen@{digest}#m.gguf")
    assert one.digest == SHA


@pytest.mark.parametrize("name", ["nothing/here:v1", "team/qwen:v9", "team/qwen:v1#other.gguf"])
def test_what_a_registry_has_not_is_said(registry: Registry, tmp_path: Path, name: str):
    registry.push("team/qwen", {"m.gguf": b"x"})
    with pytest.raises(NotFound):
        fetch(tmp_path, f"oci://{registry.address}/{name}")


def test_a_layer_that_leads_out_of_its_folder_or_is_packed_is_refused(registry: Registry, tmp_path: Path):
    registry.push("bad", {"../../etc/passwd": b"x"})
    with pytest.raises(UnsafeName, match="leads out"):
        fetch(tmp_path, f"oci://{registry.address}/bad:v1")
    registry.push("packed", {"m": b"x"}, mediaType="application/vnd.cncf.model.weight.v1.tar+gzip")
    with pytest.raises(Invalid, match="packs m as"):
        fetch(tmp_path, f"oci://{registry.address}/packed:v1")


class TokenServer:
    """A registry that asks for a bearer token, which each answer to a blob uses up; before the real one."""

    def __init__(self, registry: Registry, cut_after: int | None) -> None:
        self.registry, self.cut_after = registry, cut_after
        self.valid: set[str] = set()
        self.issued = 0
        self.url = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        given = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            if given != "Basic " + base64.b64encode(b"user:right").decode():
                return reply(request, 401, b"{}")
            self.issued += 1
            self.valid.add(f"t{self.issued}")
            return reply(request, 200, json.dumps({"token": f"t{self.issued}"}).encode())
        if given.removeprefix("Bearer ") not in self.valid:
            challenge = f'Bearer realm="{self.url}/token",service="r",scope="repository:m:pull"'
            return reply(request, 401, b"{}", www_authenticate=challenge)
        answer = httpx.get(
            f"http://{self.registry.address}{request.path}", headers={"accept": request.headers["accept"]}
        )
        if "/blobs/" in request.path:
            self.valid.discard(given.removeprefix("Bearer "))
            return ranged(request, answer.content, cut_after=self.cut_after)
        headers = {"docker_content_digest": answer.headers["docker-content-digest"]}
        return reply(request, answer.status_code, answer.content, **headers)


def test_tokens_are_fetched_and_renewed_in_the_middle_of_a_fetch(registry: Registry, tmp_path: Path):
    registry.push("m", {"m.gguf": MODEL})
    server = TokenServer(registry, 2_000_000)
    with serving(server.handle) as url:
        server.url = url
        source = f"oci://{url.removeprefix('http://')}/m:v1"
        with pytest.raises(TokenNeeded):
            fetch(tmp_path, source)
        with pytest.raises(AccessDenied):
            fetch(tmp_path, source, token="user:wrong")
        assert fetch(tmp_path, source, token="user:right").digest == SHA
        # One for the manifest and each part: every connection broke after 2 MB and its token was used up.
        assert server.issued >= 3


def test_tokens_that_end_before_a_file_begins_are_renewed(registry: Registry, tmp_path: Path):
    files = {f"model-{n}.safetensors": random.Random(n).randbytes(100_000) for n in range(9)}
    registry.push("m", files)
    server = TokenServer(registry, None)
    with serving(server.handle) as url:
        server.url = url
        found = fetch(tmp_path, f"oci://{url.removeprefix('http://')}/m:v1", token="user:right")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == files


def test_files_that_have_come_are_not_fetched_again_when_another_fails(tmp_path: Path):
    good, asked = {f"/{n}": random.Random(n).randbytes(50_000) for n in range(6)}, []
    broken = ["/3"]

    def handle(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        return reply(request, 404, b"") if request.path in broken else ranged(request, good[request.path])

    with serving(handle) as url:
        files = [
            RemoteFile(path=PurePosixPath(name[1:]), size_bytes=50_000, sha256=hashlib.sha256(data).hexdigest(),
                       request=lambda name=name: (url + name, {}))  # type: ignore[misc]
            for name, data in good.items()
        ]  # fmt: skip
        store = WeightsStore(tmp_path)
        with pytest.raises(NotFound):
            fetch_files(files, shown_as="six", store=store, entry_id="e", progress=lambda *_: None)
        there = {path.name for path in store.partial("e").glob("part-*") if path.stat().st_size == 50_000}
        assert there
        asked.clear()
        broken.clear()
        assert len(fetch_files(files, shown_as="six", store=store, entry_id="e", progress=lambda *_: None)) == 6
        assert len(asked) == 6 - len(there)


def test_dockers_own_configuration_is_read(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    registry.push("m", {"m.gguf": MODEL})
    server = TokenServer(registry, None)
    with serving(server.handle) as url:
        server.url = url
        address = url.removeprefix("http://")
        auth = base64.b64encode(b"user:right").decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {f"http://{address}": {"auth": auth}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        assert fetch(tmp_path, f"oci://{address}/m:v1").digest == SHA


# The web --------------------------------------------------------------------------------------------------------------


class Web:
    """A web server over TLS, with faults."""

    def __init__(self) -> None:
        self.data = MODEL
        self.cut_after: int | None = None
        self.status = 200
        self.token: str | None = None
        self.requests: list[str] = []

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(request.headers.get("range", ""))
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return reply(request, 401, b"")
        if self.status != 200:
            return reply(request, self.status, b"")
        return ranged(request, self.data, cut_after=self.cut_after)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Web, str]]:
    server = Web()
    certificate, key = certificate_for_loopback(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    # Asked anew for each request: a test may put another in its place.
    with serving(lambda request: server.handle(request), tls=context) as url:
        yield server, url


def certificate_for_loopback(folder: Path) -> tuple[Path, Path]:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return paths


def test_a_file_of_the_web_goes_on_where_it_broke_off(web: tuple[Web, str], tmp_path: Path):
    server, url = web
    server.cut_after = 2_000_000
    found = fetch(tmp_path, f"{url}/a/m.gguf?v=1#sha256={SHA}")
    assert found.path.name == "m.gguf"
    assert found.path.read_bytes() == MODEL
    assert server.requests == ["", "bytes=2000000-", "bytes=4000000-"]


def test_a_file_of_the_web_that_is_another_is_thrown_away(web: tuple[Web, str], tmp_path: Path):
    server, url = web
    server.data = b"another"
    with pytest.raises(DigestMismatch):
        fetch(tmp_path, f"{url}/m.gguf#sha256={SHA}")
    server.data = MODEL
    assert fetch(tmp_path, f"{url}/m.gguf#sha256={SHA}").digest == SHA


def test_each_refusal_of_a_web_server_has_its_own_reason(web: tuple[Web, str], tmp_path: Path):
    server, url = web
    source = f"{url}/m.gguf#sha256={SHA}"
    server.token = "right"
    with pytest.raises(TokenNeeded):
        fetch(tmp_path, source)
    with pytest.raises(AccessDenied):
        fetch(tmp_path, source, token="wrong")
    assert fetch(tmp_path, source, token="right").digest == SHA
    server.token = None
    for status, kind in ((404, NotFound), (500, SourceUnreachable)):
        server.status = status
        with pytest.raises(kind):
            fetch(tmp_path, f"{url}/{status}.gguf#sha256={SHA}")


# Faults of the machine ------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from pilotage.catalog import parse_source
from pilotage.clock import SystemClock
from pilotage.weights import WeightsStore, ensure
print(ensure(parse_source(sys.argv[1]), store=WeightsStore(Path(sys.argv[2])), clock=SystemClock()).digest)
"""


def test_a_fetcher_that_is_killed_is_continued_and_two_at_once_fetch_once(web: tuple[Web, str], tmp_path: Path):
    server, url = web
    source, store = f"{url}/m.gguf#sha256={SHA}", tmp_path / "store"
    argv = [sys.executable, "-c", FETCH, source, str(store)]
    waiting = threading.Event()
    whole, server.data = server.data, MODEL[:1_000_000]
    handle = server.handle

    def slow(request: BaseHTTPRequestHandler) -> None:
        """Sends a part, then says nothing."""
        if not waiting.is_set():
            request.send_response(200)
            request.send_header("content-length", str(len(whole)))
            request.end_headers()
            request.wfile.write(server.data)
            request.wfile.flush()
            waiting.wait(20)
            return
        handle(request)

    server.handle = slow  # type: ignore[method-assign]
    first = subprocess.Popen(argv, env=dict(os.environ))
    part = None
    for _ in range(400):
        part = next(iter(store.glob("partial/*/part-*")), None)
        if part and part.stat().st_size >= 900_000:
            break
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert part
    had = part.stat().st_size
    assert had >= 900_000
    waiting.set()
    server.data = whole
    server.requests.clear()
    both = [subprocess.Popen(argv, env=dict(os.environ), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=60)[0].strip() for one in both] == [SHA, SHA]
    assert server.requests == [f"bytes={had}-"]


@pytest.mark.parametrize("left_mb", [0, 2, 7])
def test_a_full_disk_at_any_phase_of_a_fetch_is_said_and_costs_nothing(
    web: tuple[Web, str], tmp_path: Path, left_mb: int, monkeypatch: pytest.MonkeyPatch
):
    """5 MB of weights on a disk that has nothing, part of it, or enough for them and nothing else."""
    import pilotage.weights.store as store_module

    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("a small disk is mounted, which only root may")
    monkeypatch.setattr(store_module, "SPARE_BYTES", 0)
    _, url = web
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)], check=True)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(9_000_000 - left_mb * 1_000_000))
        if left_mb == 2:
            # The disk fills while the fetch runs: what was free at its beginning is not what counts.
            monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9**9, 0, 9**9))  # type: ignore[attr-defined]
        source = f"{url}/m.gguf#sha256={SHA}"
        if left_mb < 7:
            with pytest.raises((NotEnoughDisk, OSError)):
                fetch(disk, source)
            assert not list(disk.glob("store/manifests/*.json"))
            monkeypatch.undo()
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            monkeypatch.setattr(store_module, "SPARE_BYTES", 0)
            ballast.unlink()
        # With room again the same source is had.
        assert fetch(disk, source).digest == SHA
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
