import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest

from bushcraft.data import build as build_module
from bushcraft.data.build import BuildSettings, build_dataset
from bushcraft.data.build_result import BuildResult
from bushcraft.data.manifest import PackTable, read_manifest
from bushcraft.data.sources import find_sources
from bushcraft.data.tokenizer import load_tokenizer
from bushcraft.data.tokenizer_training import train_tokenizer
from bushcraft.errors import DataError, StoreError
from bushcraft.store.pack import PackReader
from bushcraft.store.workspace import Store

SMALL = BuildSettings(vocab_size=300, heldout_fraction=0.1)
BUSHCRAFT = [sys.executable, "-c", "from bushcraft.cli import main; main()"]


def words(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(VOCABULARY, k=12)) for _ in range(n_words // 12)) + "\n"


VOCABULARY = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=3 + i % 7)) for i in range(3000)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 files of random words, one as JSON rows."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(words(i, 120 + i))
    rows = [json.dumps({"text": words(100 + i, 60)}) for i in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def make(
    store: Store, *patterns: Path, settings: BuildSettings = SMALL, workers: int = 1, name: str = "d"
) -> BuildResult:
    return build_dataset(store, name, find_sources([str(p) for p in patterns]), settings, workers)


def documents_of(store: Store, split: str, name: str = "d") -> dict[str, str]:
    """Name → text of every document of a split, decoded from its tokens."""
    _, manifest = read_manifest(store.depot, name)
    tokenizer = load_tokenizer(store.depot.read(manifest.tokenizer))
    table = PackTable(store.depot, manifest.splits[split])
    found = {}
    for i in range(len(table)):
        for document, tokens, n_bytes in PackReader(store.depot, table[i]).documents():
            assert tokens[0] == manifest.separator_id
            assert manifest.separator_id not in tokens[1:]
            found[document] = tokenizer.decode(tokens[1:])
            assert len(found[document].encode()) == n_bytes
    return found


def test_every_document_comes_back_from_its_tokens_on_one_side(store: Store, corpus: Path) -> None:
    result = make(store, corpus)
    train, heldout = documents_of(store, "train"), documents_of(store, "heldout")
    texts = {f"corpus/{path.name}": path.read_text() for path in corpus.glob("*.txt")}
    assert {name: text for name, text in (train | heldout).items() if name.endswith(".txt")} == texts
    assert len(train) + len(heldout) == 80
    assert not set(train) & set(heldout)
    assert len(heldout) == result.heldout["n_documents"] == 8
    assert sorted(result.baselines) == ["xz -9e, concatenated", "xz -9e, each document"]
    assert 0 < result.baselines["xz -9e, concatenated"] < result.baselines["xz -9e, each document"] < 8


def test_workers_order_of_arguments_and_place_do_not_change_the_result(tmp_path: Path, corpus: Path) -> None:
    one = make(Store.create(tmp_path / "one"), corpus)
    moved = tmp_path / "elsewhere" / "corpus"
    moved.parent.mkdir()
    corpus.rename(moved)
    two = make(Store.create(tmp_path / "two"), *sorted(moved.iterdir(), reverse=True), workers=2)
    three = make(Store.create(tmp_path / "three"), moved, workers=2)
    assert one.manifest == three.manifest
    assert one.train["n_tokens"] == two.train["n_tokens"]


def test_the_same_build_again_does_nothing_and_says_so(
    store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(store, corpus)
    monkeypatch.setattr(build_module, "run_calls", None)
    again = make(store, corpus)
    assert again.unchanged
    assert not first.unchanged
    assert again.manifest == first.manifest
    assert "already built" in again.lines()[0]
    assert len(list(store.depot.history("datasets/d"))) == 1
    assert {p.name for p in next(store.builds.iterdir()).iterdir()} == {"lock", "result-d.json"}


def test_a_changed_input_builds_anew_under_the_same_name(store: Store, corpus: Path) -> None:
    first = make(store, corpus)
    (corpus / "new.txt").write_text(words(77, 200))
    second = make(store, corpus)
    assert not second.unchanged
    assert second.manifest != first.manifest
    assert store.depot.latest("datasets/d") == second.manifest
    (corpus / "new.txt").unlink()
    assert make(store, corpus).unchanged
    assert store.depot.latest("datasets/d") == first.manifest


def test_building_again_repairs_a_damaged_pack(store: Store, corpus: Path) -> None:
    first = make(store, corpus)
    _, manifest = read_manifest(store.depot, "d")
    pack = store.depot.path(PackTable(store.depot, manifest.splits["train"])[0].object)
    data = bytearray(pack.read_bytes())
    data[100] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    second = make(store, corpus)
    assert not second.unchanged
    assert second.manifest == first.manifest
    store.depot.verify(pack.parent.name + pack.name)


def test_copies_and_near_copies_are_removed_and_counted(store: Store, corpus: Path) -> None:
    make(store, corpus, name="before")
    heldout = next(iter(documents_of(store, "heldout", "before").items()))
    for i in range(5):
        (corpus / f"copy-{i}.txt").write_text((corpus / "01.txt").read_text())
        (corpus / f"near-{i}.txt").write_text(words(900 + i, 60) + heldout[1] + words(950 + i, 60))
    (corpus / "empty.txt").touch()
    result = make(store, corpus)
    assert result.exact_copies == 5
    assert result.empty_documents == 1
    assert result.near_duplicates >= 1
    train, scored = documents_of(store, "train"), documents_of(store, "heldout")
    assert not (heldout[0] in scored and any(name.startswith("corpus/near-") for name in train))
    total = result.train["n_documents"] + result.heldout["n_documents"]
    assert total == 80 + 11 - 5 - 1 - result.near_duplicates
    kept = make(store, corpus, settings=BuildSettings(vocab_size=300, keep_copies=True), name="kept")
    assert kept.exact_copies == 0


def test_a_given_tokenizer_is_used_as_it_is(store: Store, corpus: Path) -> None:
    tokenizer = train_tokenizer([words(5, 500)], 280)
    result = make(store, corpus, settings=BuildSettings(tokenizer=tokenizer.json))
    _, manifest = read_manifest(store.depot, "d")
    assert manifest.fingerprint == manifest.tokenizer == tokenizer.fingerprint
    assert manifest.vocab_size == result.vocab_size == tokenizer.vocab_size
    assert len(documents_of(store, "train")) > 60


def test_large_vocabularies_are_stored_in_four_bytes(store: Store, corpus: Path) -> None:
    document = json.loads(train_tokenizer([words(5, 500)], 280).json)
    document["added_tokens"].append(document["added_tokens"][0] | {"content": "<far>", "id": 70_000})
    document["model"]["vocab"]["<far>"] = 70_000
    make(store, corpus, settings=BuildSettings(tokenizer=json.dumps(document).encode()))
    _, manifest = read_manifest(store.depot, "d")
    assert (manifest.itemsize, manifest.vocab_size) == (4, 70_001)
    assert len(documents_of(store, "train")) > 60


def test_bad_input_stops_before_anything_is_published_or_is_skipped_and_listed(store: Store, corpus: Path) -> None:
    (corpus / "bad.txt").write_bytes(b"ok \xff")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8 at byte 3"):
        make(store, corpus, workers=2)
    assert store.depot.refs("datasets") == []
    result = make(store, corpus, settings=BuildSettings(vocab_size=300, skip_bad=True))
    assert result.n_skipped == 1
    assert any("bad.txt is not UTF-8 at byte 3" in line for line in result.lines())
    assert result.train["n_documents"] + result.heldout["n_documents"] == 80


def test_a_corpus_without_text_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no document with text among 0 documents"):
        make(store, tmp_path / "a.txt")


def test_an_input_that_changes_between_the_passes_is_noticed(
    store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_module.choose_bounds

    def change(*args: object) -> object:
        path = corpus / "05.txt"
        path.write_text(path.read_text().swapcase())  # as many bytes as before
        return real(*args)

    monkeypatch.setattr(build_module, "choose_bounds", change)
    with pytest.raises(DataError, match="the input changed while it was read"):
        make(store, corpus)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        make(store, corpus)
    monkeypatch.undo()
    assert make(store, corpus).train["n_documents"] > 60


def test_what_a_killed_process_left_in_the_depot_is_removed(store: Store, corpus: Path) -> None:
    (store.depot.root / "incoming" / "1-abandoned").write_bytes(b"half a pack")
    make(store, corpus)
    assert not list((store.depot.root / "incoming").iterdir())


def test_two_builds_of_one_thing_at_once_are_refused(
    store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nested(*_: object, **__: object) -> None:
        monkeypatch.undo()
        make(store, corpus)

    monkeypatch.setattr(build_module, "plan_tasks", nested)
    with pytest.raises(StoreError, match="another process is at this very build"):
        make(store, corpus)


def test_a_pack_is_closed_when_it_is_full(store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bushcraft.data.encode.MOST_DOCUMENTS", 10)
    result = make(store, corpus)
    assert result.train["n_packs"] >= 7
    assert len(documents_of(store, "train")) == result.train["n_documents"]


def big_corpus(folder: Path, n_bytes: int, row_lines: int = 20) -> None:
    """Several files, so that the build has several tasks; numbers make the rows differ."""
    folder.mkdir()
    block = words(1, 20_000)
    lines = block.splitlines()
    for part in range(8):
        with (folder / f"{part}.jsonl").open("w") as file:
            written, row = 0, 0
            while written < n_bytes // 8:
                text = f"{part} {row} " + " ".join(lines[(row * 7 + part) % len(lines) :][:row_lines])
                written += file.write(json.dumps({"text": text}) + "\n")
                row += 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["scan", "encode"])
def test_a_killed_build_goes_on_and_gives_the_same(tmp_path: Path, stage: str) -> None:
    big_corpus(tmp_path / "corpus", 4_000_000)
    store = tmp_path / "store"
    command = [
        *BUSHCRAFT,
        "data",
        "build",
        "d",
        str(tmp_path / "corpus"),
        "--store",
        str(store),
        "--workers",
        "2",
        "--vocab-size",
        "300",
        "--heldout-mib",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pattern = f"builds/*/{stage}/*.json"
    deadline = time.monotonic() + 60
    while len(list(store.glob(pattern))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, "workers outlive a killed parent"
    done = {path: path.stat().st_mtime_ns for path in store.glob(pattern)}
    assert len(done) >= 2
    assert Store.open(store).depot.latest("datasets/d") is None

    kept: dict[Path, int] = {}
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        for path in done:  # the directory is cleared at the end: watch the records until then
            if path.exists():
                kept[path] = path.stat().st_mtime_ns
        time.sleep(0.002)
    assert kept == done, "finished tasks were done again"
    assert process.stdout is not None
    resumed = json.loads(process.stdout.read())
    straight = make(
        Store.create(tmp_path / "straight"),
        tmp_path / "corpus",
        settings=BuildSettings(vocab_size=300, heldout_bytes=1 << 20),
        workers=2,
    )
    assert resumed["manifest"] == straight.manifest


BYTES_AS_TOKENS = """
import sys
import numpy as np
from bushcraft.cli import main
from bushcraft.data import tokenizer
tokenizer._check = lambda *_: None
tokenizer.TextTokenizer.encode = lambda self, text: np.frombuffer(text, np.uint8)
main()
"""
"""The command with a tokenizer that takes no time: what is measured is how data flow."""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(train_tokenizer([words(1, 30_000)], 2000).json)
    peaks = []
    for n_bytes in (40_000_000, 320_000_000):
        folder = tmp_path / str(n_bytes)
        big_corpus(folder, n_bytes, row_lines=300)
        options = ["--store", str(tmp_path / "store"), "--tokenizer", str(tokenizer), "--workers", "1"]
        limit = ["--heldout-mib", "2"]  # the memory of xz grows with the held-out set
        peaks.append(peak_memory(["data", "build", "d", str(folder), *options, *limit]))
    assert max(peaks) < 500_000_000, peaks
    assert peaks[1] < peaks[0] + 100_000_000, peaks


def peak_memory(arguments: list[str]) -> int:
    """Largest sum of the resident memory of a command and its processes, in bytes."""
    command = [sys.executable, "-c", BYTES_AS_TOKENS, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(one.memory_info().rss for one in [family, *family.children(recursive=True)]))
        time.sleep(0.05)
    assert process.returncode == 0
    return peak


def test_progress_ends_at_the_whole(store: Store, corpus: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    sources = find_sources([str(corpus)])
    build_dataset(store, "d", sources, SMALL, 1, lambda *about: heard.append(about))
    for stage in ("scan", "tokenizer", "encode", "heldout"):
        done = [(done, total) for name, done, total in heard if name == stage]
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1] > 0
        assert np.all(np.diff([d for d, _ in done]) >= 0)


def test_results_are_plain_data(store: Store, corpus: Path) -> None:
    result = make(store, corpus)
    assert BuildResult(**json.loads(json.dumps(asdict(result)))) == result
