"""Find out what the endpoint of a bucket really does, by doing it: providers that speak the same protocol differ.

Everything happens below `probe/` in the depot, and is removed afterwards. What obstore cannot ask for (versions, locks,
wrong checksums) is in `probe_s3.py`.
"""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from bushcraft.errors import UnreachableError
from bushcraft.store.buckets.bucket import BucketDepot
from bushcraft.store.buckets.capabilities import Finding, ProbeReport
from bushcraft.store.buckets.clients import PART_BYTES
from bushcraft.store.buckets.endpoint import Endpoint
from bushcraft.store.buckets.failures import Failed, Kind
from bushcraft.store.buckets.probe_s3 import NOT_S3, probe_s3

SMALL_BYTES = 4096
SMALL_REQUESTS = 5
LARGE_BYTES = PART_BYTES + PART_BYTES // 2
"""Two parts, the second one smaller, as in any upload."""


def probe(depot: BucketDepot, clock: Callable[[], float] = time.time) -> ProbeReport:
    """What the depot's endpoint does, in some seconds and about 50 MB of transfer.

    `clock` gives seconds since 1970. Errors: `StoreError` if the credentials do not allow to put and get,
    `UnreachableError` if nobody answers.
    """
    endpoint, folder = depot.endpoint, f"probe/{secrets.token_hex(8)}"
    with depot.refusals(folder):
        try:
            put_seconds, get_seconds, skew = _small(endpoint, folder, clock)
            multipart, put_rate, get_rate = _large(endpoint, f"{folder}/large")
            report = ProbeReport(
                depot=depot.name,
                place=str(depot),
                time=clock(),
                range=_range(endpoint, f"{folder}/range"),
                conditional_put=_conditional_put(endpoint, f"{folder}/create"),
                multipart=multipart,
                list_after_put=_list_after_put(endpoint, folder),
                versioning=NOT_S3,
                object_lock=NOT_S3,
                checksum_enforced=NOT_S3,
                clock_skew_seconds=skew,
                put_seconds=put_seconds,
                get_seconds=get_seconds,
                put_bytes_per_second=put_rate,
                get_bytes_per_second=get_rate,
            )
        finally:
            _clean_up(endpoint, folder)
    if endpoint.place.scheme != "s3":
        return report
    # At the end: it also removes the older versions of what is cleaned up by now.
    return replace(report, **vars(probe_s3(endpoint.place, endpoint.options, folder)))


def _small(endpoint: Endpoint, folder: str, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Median seconds of a small put and a small get, and how far the server's clock is ahead."""
    data, puts, gets = os.urandom(SMALL_BYTES), [], []
    for number in range(SMALL_REQUESTS):
        key, begun = f"{folder}/small-{number}", time.perf_counter()
        endpoint.put(key, data)
        between = time.perf_counter()
        endpoint.get(key)
        puts.append(between - begun)
        gets.append(time.perf_counter() - between)
    before = clock()
    endpoint.put(f"{folder}/clock", b"now")
    middle = (before + clock()) / 2
    stamp = endpoint.modified(f"{folder}/clock")
    # A stamp has whole seconds: its second began at most one second before it was made.
    return median(puts), median(gets), round(stamp + 0.5 - middle, 1)


def _large(endpoint: Endpoint, key: str) -> tuple[Finding, float | None, float | None]:
    """Whether an upload in parts arrives, and the throughput of it, up and down."""
    data, begun = os.urandom(LARGE_BYTES), time.perf_counter()
    try:
        endpoint.put_parts(key, memoryview(data), len(data))
        between = time.perf_counter()
        arrived = endpoint.get(key) == data
    except Failed as failed:
        return Finding(False, failed.why), None, None
    if not arrived:
        return Finding(False, "other bytes came back"), None, None
    return Finding(True), len(data) / (between - begun), len(data) / (time.perf_counter() - between)


def _range(endpoint: Endpoint, key: str) -> Finding:
    data = os.urandom(SMALL_BYTES)
    endpoint.put(key, data)
    endpoint.ranges = True  # what it did before does not count
    for begin, end in ((0, 1), (1000, 2000), (SMALL_BYTES - 1, SMALL_BYTES)):
        try:
            if endpoint.get_range(key, begin, end) != data[begin:end]:
                return Finding(False, f"bytes {begin}-{end} are not those of the object")
        except Failed as failed:
            return Finding(False, failed.why)
    return Finding(True) if endpoint.ranges else Finding(False, "the whole object came for a range (200 for 206)")


def _conditional_put(endpoint: Endpoint, key: str) -> Finding:
    try:
        endpoint.put(key, b"first", create=True)
    except Failed as failed:
        return Finding(False, f"cannot create: {failed.why}")
    try:
        endpoint.put(key, b"second", create=True)
    except Failed as failed:
        return Finding(failed.kind is Kind.EXISTS, "" if failed.kind is Kind.EXISTS else failed.why)
    return Finding(False, "it created what was there already")


def _list_after_put(endpoint: Endpoint, folder: str) -> Finding:
    try:
        for number in range(SMALL_REQUESTS):
            key = f"{folder}/listed-{number}"
            endpoint.put(key, b"x")
            if key not in (found for page in endpoint.pages(folder) for found, _ in page):
                return Finding(False, "what was just put is not listed")
    except Failed as failed:
        return Finding(None, f"cannot list: {failed.why}")
    return Finding(True)


def _clean_up(endpoint: Endpoint, folder: str) -> None:
    """Remove what the credentials allow to be removed: those of a training run may not delete."""
    try:
        for key in [found for page in endpoint.pages(folder) for found, _ in page]:
            endpoint.delete(key)
    except (Failed, UnreachableError):
        return
