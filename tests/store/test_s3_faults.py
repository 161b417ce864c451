"""What servers do wrong, over real HTTP: reads stay right or fail soon, writes go on or say why."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError, UnreachableError
from bushcraft.store.buckets.bucket import BucketDepot
from bushcraft.store.depot import object_name
from tests.store.s3_servers import BUCKET, KEY, SECRET, Exchange, FaultyProxy, options, running_moto

SOON = 25.0
"""Seconds: far below a 30-second stall, far above what the machine needs."""


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with running_moto() as address:
        yield address


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setenv("TEST_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("TEST_SECRET_ACCESS_KEY", SECRET)
    proxy = FaultyProxy(moto)
    yield proxy
    proxy.close()


@pytest.fixture
def bucket(proxy: FaultyProxy, tmp_path: Path) -> BucketDepot:
    return make_depot(proxy, tmp_path)


def make_depot(proxy: FaultyProxy, tmp_path: Path, **more: object) -> BucketDepot:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    return BucketDepot.create("far", url, tmp_path / "incoming", options(proxy.address, **more))


class Some:
    """A fault for the first `n` requests of a method."""

    def __init__(self, n: int, method: str, fault: object, *arguments: object) -> None:
        self.left, self.method, self.fault, self.arguments = n, method, fault, arguments
        self.lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        with self.lock:
            hit = exchange.method == self.method and self.left > 0
            self.left -= hit
        if hit:
            self.fault(exchange, *self.arguments)  # type: ignore[operator]


def test_a_storm_of_503_is_waited_out_and_halves_the_requests(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    proxy.before = Some(3, "PUT", Exchange.refuse, 503, "SlowDown")
    name = bucket.put_bytes(b"in a storm")
    proxy.before = Some(3, "GET", Exchange.refuse, 503, "SlowDown")
    assert bucket.read(name) == b"in a storm"
    assert bucket.endpoint.limiter.limit <= 4


def test_an_endless_storm_ends_as_unreachable_and_says_why(proxy: FaultyProxy, tmp_path: Path) -> None:
    bucket = make_depot(proxy, tmp_path, attempts=3)
    proxy.before = lambda exchange: exchange.refuse(503, "SlowDown")
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="HTTP 503"):
        bucket.put_bytes(b"never")
    assert time.monotonic() - begun < SOON


def test_an_endpoint_that_answered_nobody_is_left_alone_at_once(proxy: FaultyProxy, tmp_path: Path) -> None:
    bucket = make_depot(proxy, tmp_path, attempts=2)
    name = bucket.put_bytes(b"x")
    proxy.cut = lambda _: True
    with pytest.raises(UnreachableError):
        bucket.read(name)
    n_requests, begun = len(proxy.requests), time.monotonic()
    for _ in range(10):
        with pytest.raises(UnreachableError, match="asked again in"):
            bucket.read(name)
    assert time.monotonic() - begun < 0.5
    assert len(proxy.requests) == n_requests


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_cut_connections_are_tried_again(proxy: FaultyProxy, bucket: BucketDepot, method: str) -> None:
    name = bucket.put_bytes(b"before")
    left = [2]

    def cut(exchange: Exchange) -> bool:
        left[0] -= exchange.method == method
        return exchange.method == method and left[0] >= 0

    proxy.cut = cut
    assert bucket.read(name) == b"before"
    assert bucket.read(bucket.put_bytes(b"after")) == b"after"
    assert left[0] < 0


def test_whole_object_instead_of_a_range_is_cut_and_remembered(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    data = bytes(range(256)) * 100
    name = bucket.put_bytes(data)

    def no_ranges(exchange: Exchange) -> None:
        exchange.headers = {key: value for key, value in exchange.headers.items() if key.lower() != "range"}

    proxy.before = no_ranges
    assert bucket.fetch(name, 1000, 1300) == data[1000:1300]
    assert bucket.fetch(name, 25000, 25600) == data[25000:]
    bucket.verify(name)
    with pytest.raises(CorruptObjectError, match="ends at byte 25600"):
        bucket.fetch(name, 25000, 25700)
    asked = [exchange for exchange in proxy.requests if "Range" in exchange.headers]
    assert not asked
    assert not bucket.endpoint.ranges


def test_whole_object_that_is_wrong_is_noticed(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    name = bucket.put_bytes(b"right bytes")
    bucket.endpoint.ranges = False
    proxy.after = flip
    with pytest.raises(CorruptObjectError, match=name):
        bucket.verify(name)


def flip(exchange: Exchange) -> None:
    if exchange.method == "GET" and exchange.answer:
        exchange.answer = bytes([exchange.answer[0] ^ 1]) + exchange.answer[1:]


def test_flipped_bytes_are_never_returned(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    name = bucket.put_bytes(b"right bytes")
    proxy.after = flip
    with pytest.raises(CorruptObjectError, match=name):
        bucket.read(name)
    with pytest.raises(CorruptObjectError, match=name):
        bucket.verify(name)
    with pytest.raises(CorruptObjectError, match=name):
        bucket.read_range(name, 0, 5, lambda data: data == b"right")


def test_a_body_that_breaks_off_is_asked_for_again(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    name = bucket.put_bytes(b"0123456789")

    def shorten(exchange: Exchange) -> None:
        exchange.answer = exchange.answer[:4]

    proxy.after = Some(1, "GET", shorten)
    assert bucket.fetch(name, 0, 10) == b"0123456789"
    proxy.after = lambda exchange: shorten(exchange) if exchange.method == "GET" else None
    with pytest.raises(CorruptObjectError, match="ends at byte 4"):
        bucket.fetch(name, 0, 10)


def test_one_stalled_read_of_many_costs_no_time(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    name = bucket.put_bytes(b"0123456789")
    for _ in range(20):
        bucket.fetch(name, 0, 10)
    proxy.before = Some(1, "GET", proxy.stall)
    begun = time.monotonic()
    assert bucket.fetch(name, 0, 10) == b"0123456789"
    assert time.monotonic() - begun < SOON
    assert bucket.endpoint.budget.hedges == 1


def test_stalled_writes_and_listings_are_given_up_and_tried_again(proxy: FaultyProxy, tmp_path: Path) -> None:
    bucket = make_depot(proxy, tmp_path, timeout=1.0)
    proxy.before = Some(1, "PUT", proxy.stall)
    begun = time.monotonic()
    name = bucket.put_bytes(b"late")
    proxy.before = Some(1, "GET", proxy.stall)
    assert list(bucket.objects()) == [(name, 4)]
    assert time.monotonic() - begun < SOON


def test_a_server_that_stalls_for_all_is_unreachable_in_bounded_time(proxy: FaultyProxy, tmp_path: Path) -> None:
    bucket = make_depot(proxy, tmp_path, timeout=1.0, attempts=3)
    name = bucket.put_bytes(b"x")
    proxy.before = proxy.stall
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="no answer in time"):
        bucket.read(name)
    assert time.monotonic() - begun < SOON


def test_a_stale_listing_does_not_lose_what_this_process_published(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    names = [bucket.put_bytes(data) for data in (b"old", b"new")]
    bucket.publish("run", names[0])
    stale: list[bytes] = []

    def old_listing(exchange: Exchange) -> None:
        if "list-type" in exchange.path:
            stale.append(exchange.answer)
            exchange.answer = stale[0]

    proxy.after = old_listing
    assert bucket.latest("run") == names[0]
    assert [bucket.publish("run", names[1]), bucket.publish("run", names[0])] == [2, 3]
    assert bucket.history("run")[0] == (3, names[0])
    assert len(stale) > 1
    bucket.remove_ref("run", 3, names[0])
    assert bucket.latest("run") == names[0]


def test_a_listing_that_breaks_off_goes_on_where_it_was(
    proxy: FaultyProxy, bucket: BucketDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(bucket.put_bytes(bytes([i])) for i in range(35))
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    monkeypatch.setattr("bushcraft.store.buckets.endpoint.PAGE", 10)
    failed: set[str] = set()

    def each_once(exchange: Exchange) -> None:
        if "list-type" in exchange.path and exchange.path not in failed:
            failed.add(exchange.path)
            exchange.refuse(500, "InternalError")

    proxy.before = each_once
    assert [name for name, _ in bucket.objects()] == names
    assert any("start-after" in path for path in failed)


def test_bytes_that_arrived_wrong_are_sent_again(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    def wrong(exchange: Exchange) -> None:
        exchange.body = exchange.body[:-1] + b"!"

    proxy.before = Some(1, "PUT", wrong)  # the server takes them: it does not look at the checksum that came along
    name = bucket.put_bytes(b"right bytes")
    assert bucket.read(name) == b"right bytes"
    proxy.before = lambda exchange: wrong(exchange) if exchange.method == "PUT" else None
    with pytest.raises(StoreError, match="not those that were sent"):
        bucket.put_bytes(b"other bytes")


def test_parts_that_are_refused_or_cut_are_sent_again_for_themselves(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    cuts = [1]

    def cut(exchange: Exchange) -> bool:
        hit = exchange.method == "PUT" and "partNumber=2" in exchange.path and cuts[0] > 0
        cuts[0] -= hit
        return hit

    proxy.before, proxy.cut = Some(1, "PUT", Exchange.refuse, 503, "SlowDown"), cut
    name = bucket.put_bytes(os.urandom(40 << 20))
    bucket.verify(name)
    assert proxy.count("PUT", "partNumber") == 3 + 2
    assert proxy.count("POST", "uploads") == 1


def test_a_large_object_that_arrived_short_is_noticed(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    def shorten(exchange: Exchange) -> None:
        if "partNumber=2" in exchange.path:
            exchange.body = exchange.body[:1000]
            exchange.headers = {k: v for k, v in exchange.headers.items() if k.lower() != "content-length"}

    proxy.before = shorten
    with pytest.raises(StoreError, match=f"{(16 << 20) + 1000} bytes instead of {20 << 20}"):
        bucket.put_bytes(os.urandom(20 << 20))


def test_an_etag_that_is_no_md5_is_no_damage(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    def encrypted(exchange: Exchange) -> None:
        other = [(key, value) for key, value in exchange.answer_headers if key.lower() != "etag"]
        exchange.answer_headers = [*other, ("ETag", f'"{"0123" * 8}"')]

    proxy.after = encrypted
    names = [bucket.put_bytes(bytes([i])) for i in range(3)]
    assert [bucket.read(name) for name in names] == [b"\0", b"\1", b"\2"]
    assert proxy.count("GET", object_name(b"\1")[2:]) == 1, "only the first was read back"


def test_a_server_that_keeps_nothing_is_noticed(proxy: FaultyProxy, bucket: BucketDepot) -> None:
    def lie(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            exchange.status, exchange.answer_headers = 200, [("ETag", '"no-md5"')]

    proxy.before = lie
    with pytest.raises(StoreError, match="what lies there"):
        bucket.put_bytes(b"gone")


def test_expired_credentials_are_read_again_once(
    proxy: FaultyProxy, bucket: BucketDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bucket.put_bytes(b"x")

    def only_new(exchange: Exchange) -> None:
        if "NEWKEY" not in exchange.headers.get("Authorization", exchange.headers.get("authorization", "")):
            exchange.refuse(403, "ExpiredToken")

    proxy.before = only_new
    n_requests = len(proxy.requests)
    with pytest.raises(StoreError, match="403 ExpiredToken") as caught:
        bucket.read(name)
    assert len(proxy.requests) == n_requests + 2, "tried once more, then given up"
    assert not isinstance(caught.value, UnreachableError | MissingObjectError)
    monkeypatch.setenv("TEST_ACCESS_KEY_ID", "NEWKEY")
    monkeypatch.setenv("TEST_SESSION_TOKEN", "for-an-hour")
    assert bucket.read(name) == b"x"
    assert "for-an-hour" in proxy.requests[-1].headers.values()


def test_secrets_are_in_no_text(
    proxy: FaultyProxy, bucket: BucketDepot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [str(bucket), repr(bucket), repr(bucket.endpoint), repr(bucket.endpoint.options)]
    for status, code in ((403, "AccessDenied"), (400, "InvalidRequest"), (500, "InternalError"), (404, "NoSuchBucket")):
        broken = make_depot(proxy, tmp_path, attempts=1)
        proxy.before = lambda exchange, status=status, code=code: exchange.refuse(status, code)  # type: ignore[misc]
        with pytest.raises(StoreError) as caught:
            broken.read(object_name(b""))
        texts += [str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
        proxy.before = None
    text = "\n".join([*texts, caplog.text])
    assert SECRET not in text
    assert KEY not in text
