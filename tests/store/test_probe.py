"""A probe says what an endpoint really does, and nothing relies on more than it found."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bushcraft.errors import StoreError
from bushcraft.store.buckets.bucket import BucketDepot
from bushcraft.store.buckets.capabilities import Capabilities, ProbeReport
from bushcraft.store.buckets.probe import probe
from tests.store.s3_servers import BUCKET, KEY, SECRET, Exchange, FaultyProxy, options, running_moto, running_seaweed


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with running_moto() as address:
        yield address


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("TEST_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(moto)
    yield proxy
    proxy.close()


def make_depot(address: str, tmp_path: Path, bucket: str = BUCKET, **more: object) -> BucketDepot:
    return BucketDepot.create("far", f"s3://{bucket}/{tmp_path.name}", tmp_path / "incoming", options(address, **more))


def test_moto_is_seen_to_take_wrong_checksums(moto: str, tmp_path: Path) -> None:
    depot = make_depot(moto, tmp_path)
    report = probe(depot)
    seen = (report.range, report.conditional_put, report.multipart, report.list_after_put)
    assert [finding.value for finding in seen] == [True] * 4
    assert (report.versioning.value, report.object_lock.value) == (False, False)
    assert (report.checksum_enforced.value, report.checksum_enforced.reason) == (
        False,
        "it took bytes with a wrong checksum",
    )
    assert abs(report.clock_skew_seconds) < 2
    assert report.put_seconds > 0
    assert report.get_seconds > 0
    assert list(depot.endpoint.pages("probe")) == []


def test_versions_and_locks_are_found_and_their_probes_removed(moto: str, tmp_path: Path) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=moto, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket="locking", ObjectLockEnabledForBucket=True)
    report = probe(make_depot(moto, tmp_path, "locking"))
    assert (report.versioning.value, report.object_lock.value) == (True, True)
    left = client.list_object_versions(Bucket="locking", Prefix=f"{tmp_path.name}/probe").get("Versions", [])
    assert [version["Key"].rsplit("/", 1)[1] for version in left] == ["lock"]


@pytest.mark.slow
def test_seaweed_is_seen_to_refuse_wrong_checksums(tmp_path: Path) -> None:
    with running_seaweed(tmp_path) as address:
        report = probe(make_depot(address, tmp_path))
    seen = (report.range, report.conditional_put, report.multipart, report.list_after_put, report.checksum_enforced)
    assert [finding.value for finding in seen] == [True] * 5
    assert report.versioning.value is False


def test_what_a_server_lacks_is_found(proxy: FaultyProxy, tmp_path: Path) -> None:
    def poor(exchange: Exchange) -> None:
        for lacking in ("range", "if-none-match"):
            exchange.headers = {key: value for key, value in exchange.headers.items() if key.lower() != lacking}
        if exchange.method == "POST" and "?uploads" in exchange.path:
            exchange.refuse(501, "NotImplemented")

    def stale(exchange: Exchange) -> None:
        if "list-type" in exchange.path:
            exchange.answer = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

    depot = make_depot(proxy.address, tmp_path, attempts=1)
    proxy.before, proxy.after = poor, stale
    report = probe(depot)
    lacking = (report.range, report.conditional_put, report.multipart, report.list_after_put)
    assert [finding.value for finding in lacking] == [False] * 4
    assert all(finding.reason for finding in lacking)
    assert Capabilities.of(report) == Capabilities(range=False, multipart=False, conditional_put=False)


def test_clock_of_the_server_is_compared_with_ours(tmp_path: Path) -> None:
    depot = BucketDepot.create("near", "memory://", tmp_path)
    assert abs(probe(depot, lambda: time.time() - 3600).clock_skew_seconds - 3600) < 2
    assert list(depot.endpoint.pages("probe")) == [], "it cleaned up after itself"


def test_without_boto3_it_says_what_to_install(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    report = probe(make_depot(moto, tmp_path))
    assert (report.versioning.value, report.versioning.reason) == (None, "install bushcraft[probe]")
    assert report.range.value is True


def test_report_survives_its_file(tmp_path: Path) -> None:
    report = probe(BucketDepot.create("near", "memory://", tmp_path))
    report.write(tmp_path / "probes" / "near.json")
    assert ProbeReport.read(tmp_path / "probes" / "near.json") == report
    (tmp_path / "probes" / "near.json").write_text("{}")
    with pytest.raises(StoreError, match="damaged"):
        ProbeReport.read(tmp_path / "probes" / "near.json")
    with pytest.raises(StoreError, match="no probe report"):
        ProbeReport.read(tmp_path / "none.json")


def test_nothing_is_relied_on_that_was_not_found(proxy: FaultyProxy, tmp_path: Path) -> None:
    make_depot(proxy.address, tmp_path)
    none = Capabilities(range=False, multipart=False, conditional_put=False)
    url = f"s3://{BUCKET}/{tmp_path.name}"
    depot = BucketDepot.open("far", url, tmp_path / "incoming", options(proxy.address), none)
    name = depot.put_bytes(data := os.urandom(20 << 20))
    depot.publish("run", name)
    assert depot.fetch(name, 1, 9) == data[1:9]
    assert proxy.count("POST") == 0
    headers = {header.lower() for exchange in proxy.requests for header in exchange.headers}
    assert headers.isdisjoint({"range", "if-none-match"})


def test_refusal_is_one_line_without_secrets(proxy: FaultyProxy, tmp_path: Path) -> None:
    depot = make_depot(proxy.address, tmp_path)
    proxy.before = lambda exchange: exchange.refuse(403, "AccessDenied") if exchange.method == "PUT" else None
    with pytest.raises(StoreError, match="403 AccessDenied") as caught:
        probe(depot)
    assert SECRET not in str(caught.value)
