"""A real API server over a real etcd, and nothing else: enough to say whether a CRD is accepted."""

import contextlib
import datetime
import ipaddress
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.build import PROGRAMS, build
from tests.with_envoy.harness import free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@dataclass(frozen=True)
class ApiServer:
    """A running API server and a client that may do everything."""

    url: str
    token: str
    ca: Path

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(
            base_url=self.url, verify=context, headers={"authorization": f"Bearer {self.token}"}, timeout=30
        )


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("api-server")
    programs = {program.name: build(program) for program in PROGRAMS}
    key, certificate = _certificate(folder)
    token = "test-token"
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    service_key = folder / "service-account.key"
    service_key.write_bytes(_private(ec.generate_private_key(ec.SECP256R1())))
    etcd_port, peer_port, port = free_port(), free_port(), free_port()
    etcd = [
        str(programs["etcd"]), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "error",
        "--listen-client-urls", f"http://127.0.0.1:{etcd_port}", "--advertise-client-urls", f"http://127.0.0.1:{etcd_port}",
        "--listen-peer-urls", f"http://127.0.0.1:{peer_port}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer_port}",
        "--initial-cluster", f"default=http://127.0.0.1:{peer_port}",
    ]  # fmt: skip
    server = [
        str(programs["kube-apiserver"]), f"--etcd-servers=http://127.0.0.1:{etcd_port}", f"--secure-port={port}",
        "--bind-address=127.0.0.1", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={service_key}",
        f"--service-account-signing-key-file={service_key}", "--service-cluster-ip-range=10.96.0.0/16",
        f"--cert-dir={folder}",
    ]  # fmt: skip
    with contextlib.ExitStack() as running:
        for name, command in (("etcd", etcd), ("kube-apiserver", server)):
            out = running.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
            running.callback(process.wait)
            running.callback(process.kill)
        found = ApiServer(f"https://127.0.0.1:{port}", token, certificate)
        _until_ready(found, folder)
        yield found


def _until_ready(server: ApiServer, folder: Path) -> None:
    deadline = time.monotonic() + 60
    with server.client() as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.1)
    raise AssertionError((folder / "kube-apiserver.log").read_text()[-3000:])


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.key").write_bytes(_private(key))
    (folder / "tls.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return folder / "tls.key", folder / "tls.crt"


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
