"""A real S3 server (versitygw) and a real OCI registry (go-containerregistry's), on loopback."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.build import program
from tests.with_envoy.harness import free_port

KEY, SECRET = "rootkey", "rootsecret123"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.sources)


@dataclass
class Bucket:
    """The S3 server, its folder on disk, and a client that may do everything."""

    url: str
    folder: Path
    client: Any

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="models", Key=key, Body=data, ChecksumAlgorithm="SHA256")


@contextlib.contextmanager
def started(argv: list[str], url: str, **env: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **env})
        try:
            for _ in range(200):
                with contextlib.suppress(httpx.HTTPError):
                    httpx.get(url, timeout=2)
                    break
                time.sleep(0.05)
            else:
                log.seek(0)
                raise AssertionError(f"{argv[0]} did not start: {log.read().decode()[-2000:]}")
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import botocore.session

    root, iam, port = tmp_path / "s3", tmp_path / "iam", free_port()
    root.mkdir()
    iam.mkdir()
    url = f"http://127.0.0.1:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    # Nobody is asked for credentials but the environment of these tests.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    argv = [str(program("versitygw")), "--port", f"127.0.0.1:{port}", "--iam-dir", str(iam), "--health", "/health",
            "--keep-alive", "posix", str(root)]  # fmt: skip
    with started(argv, f"{url}/health", ROOT_ACCESS_KEY_ID=KEY, ROOT_SECRET_ACCESS_KEY=SECRET):
        client = botocore.session.get_session().create_client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        client.create_bucket(Bucket="models")
        yield Bucket(url, root / "models", client)


@dataclass
class Registry:
    """The registry's address, and how to push to it."""

    address: str

    def push(self, name: str, files: dict[str, bytes], *, tag: str = "v1", **more: Any) -> str:
        """Push an artifact as ORAS does; returns its digest."""
        import hashlib

        base = f"http://{self.address}/v2/{name}"

        def blob(data: bytes) -> dict[str, Any]:
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            upload = httpx.post(f"{base}/blobs/uploads/").headers["location"]
            where = upload if upload.startswith("http") else f"http://{self.address}{upload}"
            httpx.put(where, params={"digest": digest}, content=data).raise_for_status()
            return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": len(data)}

        layers = [
            {**blob(data), "annotations": {"org.opencontainers.image.title": path}, **more}
            for path, data in files.items()
        ]
        config = {**blob(b"{}"), "mediaType": "application/vnd.oci.empty.v1+json"}
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "artifactType": "application/vnd.example.model", "config": config, "layers": layers}
        ).encode()  # fmt: skip
        headers = {"content-type": "application/vnd.oci.image.manifest.v1+json"}
        httpx.put(f"{base}/manifests/{tag}", content=manifest, headers=headers).raise_for_status()
        return "sha256:" + hashlib.sha256(manifest).hexdigest()


@pytest.fixture
def registry() -> Iterator[Registry]:
    port = free_port()
    with started([str(program("registry")), "-port", str(port)], f"http://127.0.0.1:{port}/v2/"):
        yield Registry(f"127.0.0.1:{port}")
