"""What went wrong with a request to a bucket, read from what obstore says.

obstore gives most failures as one class and a text, which may hold addresses with signatures and bodies with key
names. So only the status, the provider's error code and known words are taken from it, never the text itself.
"""

import re
from enum import Enum, auto

from obstore.exceptions import AlreadyExistsError, PermissionDeniedError, UnauthenticatedError


class Kind(Enum):
    """What follows from a failure."""

    MISSING = auto()
    NO_BUCKET = auto()
    EXISTS = auto()
    BEYOND = auto()
    """The range begins behind the object's end."""
    WHOLE = auto()
    """The server gave the whole object for a range."""
    DENIED = auto()
    THROTTLED = auto()
    TRANSIENT = auto()
    REFUSED = auto()


class Failed(Exception):  # noqa: N818 - it never leaves the store: a depot makes an error of it
    """A request that failed, and why in a few words without secrets."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why

    @property
    def may_pass(self) -> bool:
        return self.kind in (Kind.THROTTLED, Kind.TRANSIENT)


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist")
_BEYOND = re.compile(r"StartTooLarge|Wanted range starting at|Requested range was invalid")
_METADATA = re.compile(r"//(169\.254\.|\[fd00:ec2|metadata\.google)")
_THROTTLED_CODES = {"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "ThrottlingException", "ServerBusy"}
_DENIED_CODES = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "AccessDenied"}
_WORDS = {
    "Connection refused": "the connection was refused",
    "dns error": "its name is not known (DNS)",
    "certificate": "its certificate is not trusted",
    "Connection reset": "the connection was reset",
    "IncompleteBody": "the answer broke off",
    "IncompleteMessage": "the connection was closed without an answer",
    "TimedOut": "it gave no answer in time",
    "timed out": "it gave no answer in time",
    "HTTP error": "the connection broke",
    "HttpError": "the connection broke",
}


def failure(error: Exception) -> Failed:
    """The failure that `error`, raised by obstore or by a time limit, stands for."""
    if isinstance(error, TimeoutError):
        return Failed(Kind.TRANSIENT, "it gave no answer in time")
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if _NO_BUCKET.search(text):
        return Failed(Kind.NO_BUCKET, "there is no such bucket")
    if isinstance(error, FileNotFoundError):
        return Failed(Kind.MISSING, "there is no such object")
    if isinstance(error, AlreadyExistsError):
        return Failed(Kind.EXISTS, "it is there already")
    if "non-partial response" in text:
        return Failed(Kind.WHOLE, "the server knows no ranges")
    if _METADATA.search(text.partition("\n")[0]):  # where a machine of a cloud has its credentials
        return Failed(Kind.DENIED, "no credentials were found")
    if status or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return _answered(int(status[1]) if status else 403, code[1] if code else "")
    if _BEYOND.search(text):
        return Failed(Kind.BEYOND, "the range begins behind its end")
    for mark, words in _WORDS.items():
        if mark in text:
            return Failed(Kind.TRANSIENT, words)
    return Failed(Kind.REFUSED, f"the client refused ({type(error).__name__})")


def _answered(status: int, code: str) -> Failed:
    """The failure that an answer with this HTTP status and this error code (S3, GCS and Azure use the same) means."""
    why = f"HTTP {status} {code}".rstrip()
    if code in _THROTTLED_CODES or status in (429, 503):
        return Failed(Kind.THROTTLED, why)
    if code == "RequestTimeTooSkewed":
        return Failed(Kind.REFUSED, f"{why}: the clock of this machine is wrong")
    if code in _DENIED_CODES or status in (401, 403):
        return Failed(Kind.DENIED, why)
    if status == 416:
        return Failed(Kind.BEYOND, why)
    if (status >= 500 and status != 501) or status == 408 or code == "RequestTimeout":
        return Failed(Kind.TRANSIENT, why)
    return Failed(Kind.REFUSED, why)
