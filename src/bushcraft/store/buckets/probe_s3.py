"""What an S3 endpoint does with versions, locks and wrong checksums; asked through boto3 (extra `probe`)."""

import base64
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

from bushcraft.store.buckets.capabilities import Finding
from bushcraft.store.buckets.clients import BucketOptions, Place, credentials

LOCK_SECONDS = 20
"""How long nobody can remove the locked probe of a bucket that locks."""
NOT_S3 = Finding(None, "examined on S3 only")
NO_BOTO3 = Finding(None, "install bushcraft[probe]")
_WRONG_CHECKSUM = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "InvalidRequest", "InvalidArgument"}


@dataclass(frozen=True)
class S3Findings:
    """By default: of a bucket that is not S3."""

    versioning: Finding = NOT_S3
    object_lock: Finding = NOT_S3
    checksum_enforced: Finding = NOT_S3


def probe_s3(place: Place, options: BucketOptions, folder: str) -> S3Findings:
    """Examine the bucket with keys below `folder`, a path from the depot's root."""
    try:
        bucket = S3Bucket(place, options)
    except ImportError:
        return S3Findings(NO_BOTO3, NO_BOTO3, NO_BOTO3)
    key = "/".join(filter(None, (place.prefix, folder)))
    findings = S3Findings(
        bucket.examined(lambda: bucket.versioning(f"{key}/version")),
        bucket.examined(lambda: bucket.object_lock(f"{key}/lock")),
        bucket.examined(lambda: bucket.checksum_enforced(f"{key}/checksum")),
    )
    bucket.remove_versions(key)
    return findings


class S3Bucket:
    """A bucket as boto3 sees it. Errors of `__init__`: `ImportError`."""

    def __init__(self, place: Place, options: BucketOptions) -> None:
        found = credentials(place, options)
        given = {
            "endpoint_url": options.endpoint,
            "aws_access_key_id": found.get("access_key_id"),
            "aws_secret_access_key": found.get("secret_access_key"),
            "aws_session_token": found.get("session_token"),
            "verify": options.certificates,
        }
        config = import_module("botocore.config").Config(
            connect_timeout=options.connect_timeout,
            read_timeout=options.timeout,
            retries={"max_attempts": 2},
            s3={"addressing_style": "virtual" if options.virtual_hosted else "path"},
        )
        self.errors: Any = import_module("botocore.exceptions")
        self.name = place.bucket
        self.client: Any = import_module("boto3").client(
            "s3",
            region_name=options.region or "us-east-1",
            config=config,
            **{key: value for key, value in given.items() if value},
        )

    def examined(self, examine: Callable[[], Finding]) -> Finding:
        """What was found, or why it could not be, in the provider's code (its text may name keys)."""
        try:
            return examine()
        except self.errors.ClientError as error:
            return Finding(None, f"the server answers {_code(error)}")
        except self.errors.BotoCoreError as error:
            return Finding(None, f"the server cannot be asked ({type(error).__name__})")

    def versioning(self, key: str) -> Finding:
        """Put, delete, and look whether the version is still there."""
        self.client.put_object(Bucket=self.name, Key=key, Body=b"kept?")
        self.client.delete_object(Bucket=self.name, Key=key)
        if self.client.list_object_versions(Bucket=self.name, Prefix=key).get("Versions"):
            return Finding(True)
        return Finding(False, "what is deleted is gone")

    def object_lock(self, key: str) -> Finding:
        """Lock an object for some seconds, and try to delete it."""
        until = datetime.now(UTC) + timedelta(seconds=LOCK_SECONDS)
        try:
            put = self.client.put_object(
                Bucket=self.name,
                Key=key,
                Body=b"locked?",
                ChecksumAlgorithm="SHA256",
                ObjectLockMode="COMPLIANCE",
                ObjectLockRetainUntilDate=until,
            )
        except self.errors.ClientError as error:
            return Finding(False, f"the server answers {_code(error)}")
        if "VersionId" not in put:
            return Finding(False, "the bucket keeps no versions")
        try:
            self.client.delete_object(Bucket=self.name, Key=key, VersionId=put["VersionId"])
        except self.errors.ClientError:
            return Finding(True, f"the locked probe stays for {LOCK_SECONDS} s")
        return Finding(False, "a locked version was deleted")

    def checksum_enforced(self, key: str) -> Finding:
        """Put bytes with the checksum of others."""
        wrong = base64.b64encode(hashlib.sha256(b"other bytes").digest()).decode()
        try:
            self.client.put_object(Bucket=self.name, Key=key, Body=b"these bytes", ChecksumSHA256=wrong)
        except self.errors.ClientError as error:
            if _code(error) in _WRONG_CHECKSUM:
                return Finding(True)
            raise
        return Finding(False, "it took bytes with a wrong checksum")

    def remove_versions(self, prefix: str) -> None:
        """Remove all versions below a prefix, as far as the credentials and the locks allow."""
        with contextlib.suppress(self.errors.ClientError, self.errors.BotoCoreError):
            for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix):
                for version in page.get("Versions", []) + page.get("DeleteMarkers", []):
                    with contextlib.suppress(self.errors.ClientError):
                        self.client.delete_object(Bucket=self.name, Key=version["Key"], VersionId=version["VersionId"])


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "an error"))
