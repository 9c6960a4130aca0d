"""Objects of an S3 bucket. botocore lists, signs and knows where credentials are; the bytes come by our own download,
which goes on where it broke off."""

import base64
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NoReturn

from pilotage.catalog import BucketSource
from pilotage.errors import Invalid
from pilotage.weights.problems import (
    AccessDenied,
    NotFound,
    RateLimited,
    SourceUnreachable,
    TokenNeeded,
    UnsafeName,
)
from pilotage.weights.remote import RemoteFile, fetch_files
from pilotage.weights.store import StoredFile, WeightsStore

SIGNED_FOR_S = 3_600


def fetch_from_bucket(
    source: BucketSource,
    *,
    token: str | None,
    store: WeightsStore,
    entry_id: str,
    progress: Callable[[int, int | None], None],
) -> tuple[str, tuple[StoredFile, ...]]:
    """The source and its files, in the store.

    `token` is ACCESS-KEY-ID:SECRET[:SESSION-TOKEN]; without it the environment and AWS's own files say who asks, and
    nobody in particular where they say nothing.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client, is_signed = _client(token)
    try:
        files = _files(client, source)
    except ClientError as error:
        _translate(error, source, is_signed=is_signed)
    except BotoCoreError as error:
        raise SourceUnreachable(
            f"{source} can't be reached: {type(error).__name__}",
            hint="check the network, its proxy and AWS_ENDPOINT_URL",
        ) from error
    return str(source), fetch_files(files, shown_as=str(source), store=store, entry_id=entry_id, progress=progress)


def _client(token: str | None) -> tuple[Any, bool]:
    """A client, and whether it signs."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.get_session()
    if token:
        parts = token.split(":", 2)
        if len(parts) < 2:
            raise Invalid("the secret for an s3:// source is not understood", hint="write ACCESS-KEY-ID:SECRET into it")
        session.set_credentials(*parts)
    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 10,
        "read_timeout": 30,
        "signature_version": "s3v4",
    }
    is_signed = session.get_credentials() is not None
    if not is_signed:
        settings["signature_version"] = UNSIGNED
    region = session.get_config_variable("region") or "us-east-1"
    return session.create_client("s3", region_name=region, config=Config(**settings)), is_signed


def _files(client: Any, source: BucketSource) -> list[RemoteFile]:
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=source.bucket, Prefix=source.key):
        for entry in page.get("Contents", []):
            key = entry["Key"]
            # Without a slash at its end the key names one object, not all that begin like it.
            if not key.endswith("/") and (source.is_folder or key == source.key):
                found.append(_file(client, source, key, entry))
    if not found:
        what = "nothing under" if source.is_folder else "no object"
        raise NotFound(
            f"the bucket {source.bucket} holds {what} {source.key}", hint="check the key; a folder ends with /"
        )
    return found


def _file(client: Any, source: BucketSource, key: str, listed: dict[str, Any]) -> RemoteFile:
    etag = listed.get("ETag") or ""

    def request() -> tuple[str, dict[str, str]]:
        url = client.generate_presigned_url("get_object", {"Bucket": source.bucket, "Key": key}, SIGNED_FOR_S)
        # Parts of two versions must not be put together.
        return url, {"if-match": etag} if etag else {}

    name = key.removeprefix(source.key) if source.is_folder else PurePosixPath(key).name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UnsafeName(key)
    head = client.head_object(Bucket=source.bucket, Key=key, ChecksumMode="ENABLED")
    whole = head.get("ChecksumSHA256") if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" else None
    sha256 = base64.b64decode(whole).hex() if whole and "-" not in whole else None
    return RemoteFile(path=path, size_bytes=listed["Size"], sha256=sha256, request=request, version=etag)


def _translate(error: Any, source: BucketSource, *, is_signed: bool) -> NoReturn:
    code = error.response.get("Error", {}).get("Code", "")
    if code == "NoSuchBucket":
        raise NotFound(f"there is no bucket {source.bucket}", hint="check its name and AWS_ENDPOINT_URL") from None
    if code in ("NoSuchKey", "404"):
        raise NotFound(f"{source} does not exist", hint="check the key; a folder ends with /") from None
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        raise (AccessDenied(str(source), gated=False) if is_signed else TokenNeeded(str(source))) from None
    if code in ("SlowDown", "TooManyRequests", "429"):
        raise RateLimited(str(source)) from None
    raise SourceUnreachable(f"{source} answers {code}", hint="the bucket's server has a problem; try again") from None
