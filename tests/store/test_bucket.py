"""A bucket keeps what a directory keeps: the same layout, the same answers, over S3 of two kinds and in memory."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bushcraft.errors import CorruptObjectError, MissingObjectError, StoreError
from bushcraft.store.buckets.bucket import BucketDepot
from bushcraft.store.buckets.capabilities import Capabilities
from bushcraft.store.buckets.clients import BucketOptions, Place, make_client
from bushcraft.store.depot import object_name
from bushcraft.store.local import LocalDepot
from tests.store.s3_servers import BUCKET, KEY, SECRET, options, running_moto, running_seaweed


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The servers are started when a test first asks for them."""

    class Servers(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            running = running_moto() if kind == "moto" else running_seaweed(tmp_path_factory.mktemp("seaweed"))
            self[kind] = stack.enter_context(running)
            return self[kind]

    with contextlib.ExitStack() as stack:
        yield Servers()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("TEST_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(params=["memory", "file", "moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> BucketDepot:
    if request.param == "memory":
        return BucketDepot.create("near", "memory://", tmp_path / "incoming")
    if request.param == "file":
        return BucketDepot.create("near", f"file://{tmp_path}/depot", tmp_path / "incoming")
    address = request.getfixturevalue("addresses")[request.param]
    url = f"s3://{BUCKET}/{tmp_path.name}"
    return BucketDepot.create("far", url, tmp_path / "incoming", options(address))


def test_objects_are_kept_under_their_hash(bucket: BucketDepot) -> None:
    for data in (b"", b"x", b"hello" * 1000):
        name = bucket.put_bytes(data)
        assert name == object_name(data)
        assert (bucket.read(name), bucket.size(name), bucket.has(name)) == (data, len(data), True)
        assert bucket.holds(name, len(data))
        assert not bucket.holds(name, len(data) + 1)
        bucket.verify(name)


def test_ranges_are_exact_and_never_short(bucket: BucketDepot) -> None:
    name = bucket.put_bytes(data := os.urandom(1000))
    for begin, end in ((0, 1), (0, 1000), (500, 700), (999, 1000), (3, 3)):
        assert bucket.fetch(name, begin, end) == data[begin:end]
    for begin, end in ((500, 1001), (1000, 1001), (2000, 3000)):
        with pytest.raises(CorruptObjectError, match="ends at byte 1000"):
            bucket.fetch(name, begin, end)


def test_missing_objects_are_named(bucket: BucketDepot) -> None:
    name = "ab" * 32
    assert not bucket.has(name)
    assert not bucket.holds(name, 0)
    for ask in (
        bucket.read,
        bucket.size,
        bucket.verify,
        lambda n: bucket.fetch(n, 0, 1),
        lambda n: bucket.fetch(n, 0, 0),
    ):
        with pytest.raises(MissingObjectError, match=name):
            ask(name)


def test_a_large_file_goes_in_parts_and_comes_back(bucket: BucketDepot) -> None:
    block = os.urandom(1 << 20)
    with bucket.new_file() as new:
        for _ in range(35):
            new.write(block)
        path = new.path
        name = bucket.put_file(new)
    assert not path.exists()
    assert bucket.size(name) == 35 << 20
    bucket.verify(name)
    assert bucket.put_bytes(block * 35) == name


def test_objects_are_listed_by_any_prefix_in_order(bucket: BucketDepot) -> None:
    names = sorted(bucket.put_bytes(bytes([i])) for i in range(60))
    bucket.publish("objects", names[0])
    assert list(bucket.objects()) == [(name, 1) for name in names]
    for length in (1, 2, 3, 10, 63, 64):
        prefix = names[30][:length]
        assert [name for name, _ in bucket.objects(prefix)] == [name for name in names if name.startswith(prefix)]
    assert list(bucket.objects("f" * 40)) == []


def test_long_listings_come_in_pages(bucket: BucketDepot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.store.buckets.endpoint.PAGE", 7)
    names = sorted(bucket.put_bytes(bytes([i])) for i in range(30))
    pages = list(bucket.endpoint.pages("objects"))
    assert max(map(len, pages)) <= 7
    assert [name for name, _ in bucket.objects()] == names


def test_references_are_numbered_and_the_newest_wins(bucket: BucketDepot) -> None:
    names = [bucket.put_bytes(bytes([i])) for i in range(3)]
    assert [bucket.publish("checkpoints/a", name) for name in names] == [1, 2, 3]
    assert bucket.latest("checkpoints/a") == names[2]
    assert bucket.history("checkpoints/a") == [(3, names[2]), (2, names[1]), (1, names[0])]
    assert bucket.latest("checkpoints") is None
    bucket.publish("runs/b", names[0])
    assert bucket.refs() == ["checkpoints/a", "runs/b"]
    assert bucket.refs("checkpoints") == ["checkpoints/a"]
    assert bucket.refs("check") == []


def test_removing_is_free_of_effect_the_second_time(bucket: BucketDepot) -> None:
    name = bucket.put_bytes(b"x")
    bucket.publish("run", name)
    for _ in range(2):
        bucket.remove_ref("run", 1, name)
        bucket.remove_object(name)
    assert bucket.latest("run") is None
    assert not bucket.has(name)


def test_many_threads_share_a_bucket(bucket: BucketDepot) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(5):
            data = f"{number} {i}".encode()
            if bucket.read(bucket.put_bytes(data)) != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(bucket.objects())) == 40


def test_the_thread_of_a_bucket_goes_with_it(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    bucket = BucketDepot.create("near", "memory://", tmp_path)
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "bucket"]
    del bucket
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_bucket_and_a_directory_have_the_same_layout(tmp_path: Path) -> None:
    bucket = BucketDepot.create("near", f"file://{tmp_path}/depot", tmp_path / "incoming")
    name = bucket.put_bytes(b"x")
    bucket.publish("runs/a", name)
    local = LocalDepot.open(tmp_path / "depot")
    assert (local.latest("runs/a"), local.read(name)) == (name, b"x")
    other = LocalDepot.create(tmp_path / "other")
    other.publish("runs/a", other.put_bytes(b"y"))
    shutil.copytree(tmp_path / "other", tmp_path / "copy")
    copied = BucketDepot.open("near", f"file://{tmp_path}/copy", tmp_path / "incoming")
    assert copied.read(copied.latest("runs/a") or "") == b"y"


def test_what_is_no_depot_or_a_later_one_is_refused(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/depot"
    with pytest.raises(StoreError, match="is not a depot"):
        BucketDepot.open("near", url, tmp_path)
    BucketDepot.create("near", url, tmp_path)
    (tmp_path / "depot" / "depot.json").write_text('{"format": "bushcraft-depot", "version": 2}')
    with pytest.raises(StoreError, match="newer bushcraft"):
        BucketDepot.open("near", url, tmp_path)
    (tmp_path / "depot" / "depot.json").write_text("[]")
    with pytest.raises(StoreError, match="damaged"):
        BucketDepot.open("near", url, tmp_path)


def test_a_bucket_that_is_not_there_is_said(addresses: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no such bucket.*Create the bucket"):
        BucketDepot.open("far", "s3://nosuchbucket/x", tmp_path, options(addresses["moto"]))


@pytest.mark.parametrize(
    ("url", "given", "message"),
    [
        ("s3://user:password@bucket", {}, "more than a place"),
        ("az://container?sig=password", {}, "more than a place"),
        ("https://host/bucket", {}, "is not a bucket"),
        ("s3://bucket", {"secret_access_key": "password"}, "is a secret"),
        ("s3://bucket", {"endpoint": "http://user:password@host"}, "holds a password"),
        ("s3://bucket", {"regoin": "x"}, "Did you mean 'region'"),
        ("s3://bucket", {"timeout": "soon"}, "no such value"),
        ("s3://bucket", {"allow_http": "maybe"}, "neither true nor false"),
    ],
)
def test_wrong_settings_are_named_and_secrets_are_not(
    url: str, given: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        BucketDepot("far", url, tmp_path, given)
    assert "password" not in str(caught.value).replace("holds a password", "")


def test_credentials_that_are_not_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="NONE_ACCESS_KEY_ID is not set"):
        BucketDepot("far", "s3://bucket", tmp_path, {"credentials": "NONE"}).has("ab" * 32)


def test_every_provider_has_its_client() -> None:
    kinds = {"s3://b/p": {}, "gs://b/p": {}, "az://c/p": {"account": "a"}}
    clients = [make_client(Place.parse(url), BucketOptions.parse(given, url)) for url, given in kinds.items()]
    assert [type(client).__name__ for client in clients] == ["S3Store", "GCSStore", "AzureStore"]
    assert {client.prefix for client in clients} == {"p"}
    with pytest.raises(StoreError, match="Account must be specified"):
        make_client(Place.parse("az://c"), BucketOptions())


def test_the_bucket_of_a_virtual_host_stands_before_its_name() -> None:
    given = {"endpoint": "https://s3.host", "virtual_hosted": "true", "credentials": "TEST"}
    client = make_client(Place.parse("s3://b/p"), BucketOptions.parse(given, "x"))
    assert client.config["endpoint"] == "https://b.s3.host"  # type: ignore[index, union-attr]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(data=st.binary(min_size=1, max_size=300), cut=st.tuples(st.integers(0, 300), st.integers(0, 300)), ranges=...)
def test_any_range_is_that_of_the_bytes(
    data: bytes, cut: tuple[int, int], ranges: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bucket = BucketDepot("near", "memory://", tmp_path_factory.getbasetemp(), {}, Capabilities(range=ranges))
    name = bucket.put_bytes(data)
    begin, end = sorted(cut)
    if end <= len(data) or begin == end:
        assert bucket.fetch(name, begin, end) == data[begin:end]
    else:
        with pytest.raises(CorruptObjectError, match=f"ends at byte {len(data)}"):
            bucket.fetch(name, begin, end)


def test_options_are_read_from_text() -> None:
    parsed = BucketOptions.parse({"timeout": "2.5", "allow_http": "true", "attempts": "3", "region": "eu"}, "x")
    assert (parsed.timeout, parsed.allow_http, parsed.attempts, parsed.region) == (2.5, True, 3, "eu")
    assert str(Place.parse("s3://bucket/a/b/")) == "s3://bucket/a/b"


def read_elsewhere(depot: BucketDepot, name: str) -> bytes:
    return depot.read(name)


@pytest.mark.slow
def test_a_bucket_may_be_handed_to_a_spawned_process(addresses: dict[str, str], tmp_path: Path) -> None:
    depot = BucketDepot.create("far", f"s3://{BUCKET}/spawn", tmp_path, options(addresses["moto"]))
    name = depot.put_bytes(b"x")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (depot, name)) == b"x"


def test_a_fork_uses_a_bucket_that_its_parent_did_not(addresses: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own, since this one has used some. The child of one that used it is refused, not stuck."""
    script = f"""
        import os, signal
        from pathlib import Path
        from bushcraft.errors import StoreError
        from bushcraft.store.buckets.bucket import BucketDepot
        given = {options(addresses["moto"])!r}
        depot = BucketDepot("far", "s3://{BUCKET}/fork", Path({str(tmp_path)!r}), given)
        if not (child := os.fork()):
            signal.alarm(20)
            name = depot.put_bytes(b"x")
            os._exit(0 if depot.read(name) == b"x" else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(depot.read(depot.put_bytes(b"x")))
        if not (child := os.fork()):
            signal.alarm(20)
            try:
                depot.put_bytes(b"y")
            except StoreError as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:3] == ["0", "b'x'", "7"]
