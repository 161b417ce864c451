"""`bushcraft store` as people and scripts use it: what it prints, and its exit code."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bushcraft.cli import app
from bushcraft.errors import BushcraftError
from bushcraft.store.depots import Depots
from bushcraft.store.local import LocalDepot
from bushcraft.store.settings import read_settings
from bushcraft.store.workspace import Store
from tests.store.three_depots import catch_up, damage, delete, directory, fill, flip, three_depots


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BUSHCRAFT_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    """Three depots with 30 objects; `things/0` names some of them."""
    store = three_depots(root)
    fill(store, 30)
    return store


def run(*words: str) -> Result:
    result = CliRunner().invoke(app, ["store", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit | BushcraftError):
        raise result.exception
    return result


def output(*words: str, code: int = 0) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def refusal(*words: str) -> str:
    result = run(*words)
    assert isinstance(result.exception, BushcraftError), result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


# init


def test_a_store_is_made_and_depots_are_added_to_it_later(root: Path) -> None:
    assert output("init")["copies"] == 1
    assert isinstance(Store.open(root).depot, LocalDepot)
    name = Store.open(root).depot.put_bytes(b"weights")
    again = run(
        "init", "--depot", "disk=second", "--provider", "disk=elsewhere", "--copies", "2", "--off-provider", "1"
    )
    assert "replicate --all" in again.output
    store = Store.open(root)
    assert isinstance(store.depot, Depots)
    assert read_settings(root).depots[1].url == str(root.parent / "second")
    assert run("replicate", "--all").exit_code == 0
    assert directory(store, "disk").read(name) == b"weights"


def test_what_is_not_given_stays(root: Path) -> None:
    output("init", "--depot", "disk=second", "--copies", "2")
    output("init", "--provider", "disk=elsewhere")
    settings = read_settings(root)
    assert (settings.copies, settings.depots[1].provider) == (2, "elsewhere")


def test_options_of_an_endpoint_are_read_as_what_they_are(root: Path) -> None:
    words = ["--depot", "m=memory:///x", "--option", "m.timeout=2.5", "--option", "m.allow_http=true"]
    output("init", *words, "--option", "m.region=auto")
    assert read_settings(root).depots[1].options == {"timeout": 2.5, "allow_http": True, "region": "auto"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--depot", "second"], "--depot 'second' is not NAME=VALUE"),
        (["--copies", "2"], "copies = 2 needs as many depots"),
        (["--depot", "d=second", "--copies", "2", "--off-provider", "1"], "off_provider = 1 needs so many"),
        (["--provider", "x=there"], "there is no depot 'x'"),
        (["--option", "local=3"], "names no option"),
        (["--option", "local.secret_key=abc"], "is a secret"),
        (["--depot", "B@D=second"], "should match pattern"),
    ],
)
def test_a_store_that_cannot_be_is_refused_and_stays_as_it_was(root: Path, words: list[str], told: str) -> None:
    assert told in refusal("init", *words)
    assert not (root / "store.toml").exists()


# status


def test_status_of_a_single_depot(root: Path) -> None:
    Store.create(root).depot.put_bytes(b"weights")
    found = output("status")
    assert [(d["name"], d["objects"], d["bytes"], d["exact"]) for d in found["depots"]] == [("local", 1, 7, True)]
    assert found["policy"]["kept"]
    assert "policy: copies 1" in run("status").output


def test_status_shows_lag_and_what_is_below_the_policy(store: Store) -> None:
    store.depot.put_bytes(b"weights")
    first = next(iter(directory(store, "c").objects()))[0]
    delete(directory(store, "c").path(first), Random(0))
    found = output("status")
    assert [d["lag"]["objects"] for d in found["depots"]] == [0, 1, 0]
    assert found["policy"]["below_policy"] == 1
    text = run("status").output
    assert "1 object, 7 B, 0 references" in text
    assert "not kept by 1 (of 31 objects" in text


def test_a_depot_that_does_not_answer_is_shown_and_ends_in_1(store: Store) -> None:
    (store.root / "c").rename(store.root / "elsewhere")
    assert "No such file" in output("status", code=1)["depots"][2]["error"]


@pytest.mark.usefixtures("root")
def test_there_is_no_store() -> None:
    assert "there is no store" in refusal("status")


# verify, scrub, drill


def test_verify_finds_what_is_damaged_and_mends_nothing(store: Store) -> None:
    assert output("verify")["damages"] == 0
    assert damage(store, 10, Random(0)) == 10
    for _ in range(2):
        assert output("verify", code=1)["damages"] == 8  # two were references
    assert "damaged or missing in" in run("verify").output


def test_verify_takes_an_object_a_reference_a_sample_or_all_that_is_kept(store: Store) -> None:
    name = str(store.depot.latest("things/0"))
    assert [depot["checked"] for depot in output("verify", name)["depots"]] == [1, 1, 1]
    assert [depot["checked"] for depot in output("verify", "things/0")["depots"]] == [3, 3, 3]
    assert [depot["checked"] for depot in output("verify", "--sample", "7")["depots"]] == [7, 7, 7]
    assert [depot["checked"] for depot in output("verify", "--refs")["depots"]] == [3, 3, 3]
    assert "no object and no reference 'other'" in refusal("verify", "other")
    assert "Give one of them" in refusal("verify", name, "--refs")


def test_a_scrub_mends_and_says_how_much(store: Store) -> None:
    damage(store, 15, Random(1))
    assert "15 damages, 15 repaired; all objects were looked at" in run("scrub").output
    assert output("scrub")["damages"] == 0


def test_what_is_lost_ends_in_1_and_is_named(store: Store) -> None:
    name = next(iter(directory(store, "c").objects()))[0]
    for depot in ("local", "b", "c"):
        flip(directory(store, depot).path(name), Random(0))
    result = run("scrub")
    assert result.exit_code == 1
    assert f"lost or not repaired in b: object {name}" in result.output
    assert output("scrub", code=1)["lost"] == [name]


@pytest.mark.usefixtures("store")
def test_a_budget_that_is_spent_says_so() -> None:
    assert "the next scrub goes on" in run("scrub", "--gib", "0").output


def test_a_drill_says_what_would_be_lost(store: Store) -> None:
    assert "nothing would be lost" in run("drill", "--lose", "local").output
    name = str(store.depot.latest("things/0"))
    for depot in ("b", "c"):
        delete(directory(store, depot).path(name), Random(0))
    found = output("drill", "--lose", "local", code=1)
    assert [(loss["reference"], loss["object"]) for loss in found["losses"]] == [("things/0@3", name)]
    assert "no depot 'x'" in refusal("drill", "--lose", "x")


# replicate, gc


def test_replicate_works_off_the_journals(store: Store) -> None:
    store.depot.put_bytes(b"weights")
    assert [report["entries"] for report in output("replicate")] == [0, 1, 0]
    assert "b: 0 delivered, has everything" in run("replicate").output


def test_replicate_ends_in_1_while_a_depot_is_behind(store: Store) -> None:
    store.depot.put_bytes(b"weights")
    (store.root / "b").rename(store.root / "elsewhere")
    result = run("replicate")
    assert result.exit_code == 1
    assert "b: 0 delivered, is behind: cannot" in result.output


@pytest.mark.usefixtures("store")
def test_gc_marks_first_and_deletes_only_later() -> None:
    assert output("gc", "--dry-run")["unreachable"] == 27
    assert "a dry run" in run("gc", "--dry-run").output
    assert "marked: 27 objects" in run("gc").output
    assert output("gc", "--sweep")["deleted"] == 0
    assert "deleted: 0 objects" in run("gc", "--sweep").output


def test_gc_deletes_what_was_marked_before_the_grace(root: Path) -> None:
    store = three_depots(root, grace_days=0)
    store.depot.publish("r", store.depot.put_bytes(b"kept"))
    store.depot.put_bytes(b"garbage")
    catch_up(store)
    run("gc")
    assert output("gc", "--sweep")["deleted"] == 1
    assert [len(list(directory(store, name).objects())) for name in ("local", "b", "c")] == [2, 2, 2]


def test_gc_is_off_by_default(root: Path) -> None:
    three_depots(root, gc=False)
    assert "gc is off" in refusal("gc")


# nodes


@pytest.mark.usefixtures("store")
def test_a_store_without_buckets_has_nothing_to_probe() -> None:
    assert "no bucket" in refusal("probe")
    assert "'b' is no bucket" in refusal("probe", "b")


@pytest.mark.usefixtures("store")
def test_serving_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUSHCRAFT_TOKEN", raising=False)
    assert "Set BUSHCRAFT_TOKEN" in refusal("serve", "127.0.0.1:0")


def test_a_probe_is_kept_where_the_store_finds_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output("init", "--depot", f"f=file://{os.fspath(root)}/bucket")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    (found,) = output("probe")
    assert found["depot"] == "f"
    assert json.loads((root / "probes" / "f.json").read_bytes()) == found
    assert isinstance(Store.open(root).depot, Depots)
    assert "conditional put" in run("probe", "f").output
