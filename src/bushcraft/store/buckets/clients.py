"""The clients of one bucket: what its options mean to obstore, and where its credentials come from.

Without the option `credentials`, obstore looks them up itself. For S3: the variables AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, then a web identity (AWS_WEB_IDENTITY_TOKEN_FILE), then the credentials of
a container (ECS, EKS), then those of the machine (IMDS); it reads no ~/.aws. For GCS: GOOGLE_SERVICE_ACCOUNT,
GOOGLE_APPLICATION_CREDENTIALS, ~/.config/gcloud, then the machine's. For Azure: AZURE_STORAGE_ACCOUNT_KEY,
AZURE_STORAGE_SAS_KEY, AZURE_CLIENT_ID with a secret or a federated token, then the machine's.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store

from bushcraft.errors import StoreError
from bushcraft.store.durable import machine_errors

SCHEMES = ("s3", "gs", "az", "file", "memory")
"""`file` and `memory` are for tests: nothing of theirs is durable. A directory is a `LocalDepot`."""
PART_BYTES = 16 * 1024 * 1024
"""Of an upload in parts; what is no larger goes in one request. S3 takes 10,000 parts of at least 5 MiB."""
PARTS_AT_ONCE = 4
SLOWEST = 1024 * 1024
"""Bytes a second below which a transfer counts as stalled."""

BucketClient = S3Store | GCSStore | AzureStore | LocalStore | MemoryStore


@dataclass(frozen=True)
class BucketOptions:
    """How a bucket is reached. As text, from a store's settings: numbers and true or false are read from it."""

    endpoint: str = ""
    """Address of the server, where it is not the provider's own."""
    region: str = ""
    account: str = ""
    """Of Azure storage."""
    virtual_hosted: bool = False
    """The bucket is put before the server's name, not into the path."""
    allow_http: bool = False
    certificates: str = ""
    """A file of further certificates (PEM) to trust."""
    credentials: str = ""
    """X means the variables X_ACCESS_KEY_ID, X_SECRET_ACCESS_KEY and perhaps X_SESSION_TOKEN (S3 only)."""
    timeout: float = 10.0
    """Seconds for an answer, beside the time that its bytes take at 1 MiB/s."""
    connect_timeout: float = 5.0
    attempts: int = 8
    deadline: float = 30.0
    """Seconds for one operation with all its retries, beside the time that its bytes take."""
    requests: int = 32
    """At a time."""

    @classmethod
    def parse(cls, options: Mapping[str, object], place: str) -> "BucketOptions":
        """Errors: `StoreError` for an option that is unknown, has no such value or would hold a secret."""
        known = {field.name: field.type for field in fields(cls)}
        for key in options:
            if key not in known:
                raise _unknown(key, known, place)
        try:
            parsed = cls(**{key: _value(known[key], str(value)) for key, value in options.items()})
        except ValueError as error:
            raise StoreError(f"an option of depot {place} has no such value: {error}", "See store.toml") from None
        if "@" in parsed.endpoint:
            raise StoreError(f"the endpoint of depot {place} holds a password", "Secrets come from the environment")
        return parsed

    def seconds(self, n_bytes: int) -> float:
        """How long a request of so many bytes may take."""
        return self.timeout + n_bytes / SLOWEST


def _value(kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    return kind(text)


def _unknown(key: str, known: Mapping[str, object], place: str) -> StoreError:
    if any(word in key for word in ("secret", "key", "token", "password", "sas")):
        return StoreError(
            f"option {key!r} of depot {place} is a secret", 'Put it into the environment; see option "credentials"'
        )
    near = difflib.get_close_matches(key, known, 1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}"
    return StoreError(f"depot {place} has no option {key!r}", hint)


@dataclass(frozen=True)
class Place:
    """A URL, taken apart."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> "Place":
        """Errors: `StoreError` if that is no bucket's URL, without showing it where it may hold a password."""
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise StoreError("the URL of a depot holds more than a place", "Secrets come from the environment")
        if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme in ("file", "memory")):
            raise StoreError(f"{url!r} is not a bucket", "Write s3://BUCKET/PREFIX, gs://BUCKET or az://CONTAINER")
        path = parts.path if parts.scheme == "file" else parts.path.strip("/")
        return cls(parts.scheme, parts.netloc, path)

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(filter(None, (self.bucket, self.prefix)))}"


def make_client(place: Place, options: BucketOptions, attempts_of_a_part: int = 0) -> BucketClient:
    """A client with connections of its own, and the credentials of this moment.

    Single requests are tried once (the endpoint tries again, and knows when not to) and have their time limit from
    the caller. The parts of an upload are tried again by obstore, each for itself.

    Errors: `StoreError` if credentials or settings are missing.
    """
    if place.scheme == "file":
        return LocalStore(place.prefix, mkdir=True)
    limit = options.seconds(PART_BYTES * PARTS_AT_ONCE) if attempts_of_a_part else 24 * 3600.0
    common: dict[str, Any] = {
        "prefix": place.prefix or None,
        "client_options": _client_options(options, limit),
        "retry_config": {"max_retries": attempts_of_a_part, "retry_timeout": timedelta(seconds=options.deadline)},
    }
    s3: Any = _s3_config(place, options) if place.scheme == "s3" else None
    try:
        if place.scheme == "gs":
            return GCSStore(place.bucket, config=_given(base_url=options.endpoint), **common)
        if place.scheme == "az":
            config = _given(account_name=options.account, endpoint=options.endpoint)
            return AzureStore(place.bucket, config=config, **common)
        return S3Store(place.bucket, config=s3, **common)
    except (BaseError, ValueError) as error:
        why = str(error).partition("\n")[0] if "must be" in str(error) else type(error).__name__
        raise StoreError(f"depot {place} cannot be set up: {why}", "Look at its options and credentials") from None


def _client_options(options: BucketOptions, limit: float) -> Any:
    certificates = Path(options.certificates)
    with machine_errors("read", certificates):
        trusted = certificates.read_bytes() if options.certificates else None
    return _given(
        timeout=timedelta(seconds=limit),
        connect_timeout=timedelta(seconds=options.connect_timeout),
        allow_http=options.allow_http,
        root_certificate=trusted,
    )


def _s3_config(place: Place, options: BucketOptions) -> Any:
    """What obstore wants to know of an S3 bucket. It holds secrets: it is handed on, and neither kept nor shown."""
    endpoint = options.endpoint.replace("://", f"://{place.bucket}.", 1) if options.virtual_hosted else options.endpoint
    return _given(
        endpoint=endpoint,
        region=options.region,
        virtual_hosted_style_request=options.virtual_hosted,
        disable_bulk_delete=True,  # not every provider knows it, and only `gc` deletes
        **credentials(place, options),
    )


def credentials(place: Place, options: BucketOptions) -> dict[str, str]:
    """The credentials that the options name, read from the environment now; none: obstore finds them."""
    if not options.credentials:
        return {}
    names = {
        key: f"{options.credentials}_{key.upper()}" for key in ("access_key_id", "secret_access_key", "session_token")
    }
    found = {key: os.environ[variable] for key, variable in names.items() if os.environ.get(variable)}
    for key in ("access_key_id", "secret_access_key"):
        if key not in found:
            raise StoreError(f"depot {place} has no credentials: {names[key]} is not set", "Set it in the environment")
    return found


def _given(**values: Any) -> Any:
    return {key: value for key, value in values.items() if value not in ("", None)}
