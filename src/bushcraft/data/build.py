"""Building a data set: files → documents → train and held-out → tokens → packs → manifest.

    scan      every document's hash and size; those of small rank are kept at hand      (processes)
    select    exact copies, the held-out documents, the tokenizer's sample
    tokenizer trained on training documents, or the user's
    encode    training documents → packs; which held-out documents they contain        (processes)
    finish    the other held-out documents → packs; what `xz` makes of them; the manifest

Every task leaves a record when all of its work is durable, so that a killed build goes on where it was.
Identity: the packs and the manifest depend on the documents and the settings, not on where they lie, on the
number of workers, or on how often the build was stopped. What a task reads is bounded, and so is memory.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bushcraft.data import compression_baseline as baseline
from bushcraft.data.build_result import BuildResult, holds
from bushcraft.data.build_settings import BuildSettings
from bushcraft.data.duplicates import HeldoutIndex
from bushcraft.data.encode import HELDOUT_INDEX, HELDOUT_TEXT, PackSeries, encode_heldout, encode_task, packs_of
from bushcraft.data.examples import ExampleReader, example_format
from bushcraft.data.journal import RESULT, Journal, identity
from bushcraft.data.manifest import DatasetManifest, ExampleFormat, split_from_packs, write_manifest
from bushcraft.data.scan import Scan, scan_task
from bushcraft.data.sources import Source
from bushcraft.data.split import Bounds, choose_bounds, first_copies, rank_below, roles
from bushcraft.data.tasks import Task, plan_tasks
from bushcraft.data.tokenizer import TextTokenizer, load_tokenizer, token_itemsize
from bushcraft.data.tokenizer_training import train_tokenizer
from bushcraft.data.workers import run_calls
from bushcraft.errors import DataError
from bushcraft.store.depot import Depot
from bushcraft.store.pack import PackEntry
from bushcraft.store.workspace import Store

BUILD_VERSION = 1
"""Goes up when the same input would give other packs, so that no half of a build meets the other's."""
SAMPLE_BYTES = 32 << 20
RETAINED_TIMES = 4
"""The scan keeps so many times the text that the split and the sample want: sizes are guessed before it."""

Progress = Callable[[str, int, int], None]
"""Hears of (stage, bytes done, bytes in all)."""


def build_dataset(
    store: Store,
    name: str,
    sources: Sequence[Source],
    settings: BuildSettings,
    workers: int = 1,
    progress: Progress = lambda _stage, _done, _total: None,
    skipped: Sequence[str] = (),
) -> BuildResult:
    """Build the data set `name` from `sources`, or go on with it, or say that it is built.

    `skipped`: inputs that were left out before, for the result to tell. Errors: `DataError`, `StoreError`.
    """
    started = time.monotonic()
    settings.check()
    settings.check_sources(sources)
    store.depot.remove_abandoned_files()
    newest = store.depot.latest(f"datasets/{name}")
    inputs = ([s.name, s.path, s.size, s.modified_ns] for s in sources)
    about = asdict(settings) | {"version": BUILD_VERSION, "tokenizer": (settings.tokenizer or b"").hex()}
    if settings.instructions is None:
        del about["instructions"]  # builds of text are called what they were called before there were others
    journal = Journal(store.builds / identity(about, inputs))
    with journal.lock():
        known = journal.read(f"{RESULT}-{name}")
        if known and holds(store.depot, known["manifest"], progress):
            if newest != known["manifest"]:
                store.depot.publish(f"datasets/{name}", known["manifest"])
            return BuildResult(**known | {"unchanged": True, "seconds": time.monotonic() - started})
        if known:
            journal.clear(results=True)
        result = _Build(store.depot, journal, settings, workers, progress, list(skipped), settings.examples()).run(
            name, sources
        )
        result = BuildResult(**asdict(result) | {"seconds": time.monotonic() - started})
        journal.write(f"{RESULT}-{name}", asdict(result))
        journal.clear()
    return result


@dataclass
class _Build:
    depot: Depot
    journal: Journal
    settings: BuildSettings
    workers: int
    progress: Progress
    skipped: list[str]
    examples: ExampleReader | None
    """How rows become examples, if they do."""

    def run(self, name: str, sources: Sequence[Source]) -> BuildResult:
        tasks = plan_tasks(sources, self.settings.column, self.settings.heldout_fraction > 0, self._on_bad)
        retained = self._retained(tasks)
        scan = self._scan(tasks, retained)
        chosen = self._select(scan, retained)
        tokenizer = self._tokenizer(scan, Bounds(**chosen["bounds"]))
        self._index(scan)
        packs, dropped = self._encode(scan, tasks, tokenizer)
        heldout, baselines = self._heldout(scan, dropped, tokenizer)
        examples, n_too_long = self._example_format(tasks, tokenizer, heldout)
        notes = {
            "heldout_fraction": self.settings.heldout_fraction,
            "heldout_limit_bytes": self.settings.heldout_bytes,
            "exact_copies_removed": chosen["copies"],
            "near_duplicates_not_scored": len(dropped),
            "empty_documents_removed": chosen["empty"],
            "inputs_skipped": chosen["n_bad"] + len(self.skipped),
        }
        if self.examples:
            notes["examples_left_out"] = n_too_long
        elif not baseline.available():
            notes["baselines"] = "none: this Python was built without lzma"
        manifest = DatasetManifest(
            name=name,
            tokenizer=self.depot.put_bytes(tokenizer.json),
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            separator_id=tokenizer.separator_id,
            itemsize=token_itemsize(tokenizer.vocab_size + 2) if examples else tokenizer.itemsize,
            splits={
                "train": split_from_packs(self.depot, packs),
                "heldout": split_from_packs(self.depot, heldout.entries),
            },
            baselines=baselines,
            notes=notes,
            examples=examples,
        )
        return BuildResult(
            name=name,
            manifest=write_manifest(self.depot, manifest),
            train=asdict(manifest.splits["train"]),
            heldout=asdict(manifest.splits["heldout"]),
            vocab_size=tokenizer.vocab_size,
            baselines=baselines,
            exact_copies=chosen["copies"],
            near_duplicates=len(dropped),
            empty_documents=chosen["empty"],
            n_skipped=chosen["n_bad"] + len(self.skipped),
            skipped=[*self.skipped, *chosen["bad"]],
            longest_example=examples.longest if examples else None,
            too_long=n_too_long,
        )

    def _on_bad(self, error: DataError) -> None:
        if not self.settings.skip_bad:
            raise error
        self.skipped.append(error.message)

    def _retained(self, tasks: Sequence[Task]) -> int:
        """The rank below which the scan keeps documents at hand."""
        wanted = self.settings.heldout_bytes + (0 if self.settings.tokenizer else SAMPLE_BYTES)
        total = sum(task.n_bytes for task in tasks)
        return rank_below(min(1.0, RETAINED_TIMES * wanted / max(1, total)))

    def _each_task(self, stage: str, tasks: Sequence[Task], call: Callable[[Task], Callable[[], None]]) -> None:
        """Run what is not done yet of a stage."""
        waiting = [task for task in tasks if self.journal.read(f"{stage}/{task.index:05d}") is None]
        total = sum(task.n_bytes for task in tasks)
        done = total - sum(task.n_bytes for task in waiting)
        self.progress(stage, done, total)

        def on_done(index: int, _result: None) -> None:
            nonlocal done
            done += waiting[index].n_bytes
            self.progress(stage, done, total)

        run_calls([call(task) for task in waiting], self.workers, on_done)

    def _scan(self, tasks: Sequence[Task], retained: int) -> Scan:
        column, skip_bad, examples = self.settings.column, self.settings.skip_bad, self.examples
        self._each_task(
            "scan",
            tasks,
            lambda task: partial(scan_task, self.journal, task, column, skip_bad, retained, examples),
        )
        return Scan(self.journal, tuple(self._record("scan", task.index)["documents"] for task in tasks))

    def _select(self, scan: Scan, retained: int) -> dict[str, Any]:
        """Decide on every document; the bounds of the split and some counts."""
        if (known := self.journal.read("select")) is not None:
            return known
        units = scan.units
        loaded = range(len(units))
        full = [scan.records(unit)["size"] > 0 for unit in loaded]
        if not any(part.any() for part in full):
            raise DataError(
                f"no document with text among {sum(scan.counts)} documents", "Name files with text, and see --column"
            )
        first = full if self.settings.keep_copies else first_copies(scan.records, len(units))
        kept = [a & b for a, b in zip(first, full, strict=True)]
        n_documents = sum(scan.counts)
        n_full, n_kept = (sum(int(part.sum()) for part in parts) for parts in (full, kept))
        sample = 0 if self.settings.tokenizer else SAMPLE_BYTES
        bounds = choose_bounds(
            scan.records, kept, self.settings.heldout_fraction, self.settings.heldout_bytes, sample, retained
        )
        for task in range(len(scan.counts)):
            with self.journal.new_file(f"roles/{task:05d}") as file:
                for unit in loaded:
                    if units[unit][0] == task:
                        file.write(roles(scan.records(unit), kept[unit], bounds).tobytes())
        records = [self._record("scan", task) for task in range(len(scan.counts))]
        chosen = {
            "bounds": asdict(bounds),
            "empty": n_documents - n_full,
            "copies": n_full - n_kept,
            "n_bad": sum(record["n_bad"] for record in records),
            "bad": [message for record in records for message in record["bad"]],
        }
        self.journal.write("select", chosen)
        return chosen

    def _tokenizer(self, scan: Scan, bounds: Bounds) -> TextTokenizer:
        settings = self.settings
        if settings.tokenizer is not None:
            tokenizer = load_tokenizer(settings.tokenizer, settings.separator)
            self.depot.put_bytes(tokenizer.json)
            return tokenizer
        known = self.journal.read("tokenizer")
        if known is None:
            self.progress("tokenizer", 0, 1)
            # In a process of its own, which gives the memory of the sample back.
            calls = [partial(_train, scan, bounds, settings.vocab_size)]
            tokenizer = run_calls(calls, workers=1, in_process=False)[0]
            known = {"object": self.depot.put_bytes(tokenizer.json), "separator": tokenizer.separator}
            self.journal.write("tokenizer", known)
            self.progress("tokenizer", 1, 1)
        return load_tokenizer(self.depot.read(known["object"]), known["separator"])

    def _index(self, scan: Scan) -> None:
        path = self.journal.file(HELDOUT_INDEX)
        if not path.exists():
            with self.journal.new_file(HELDOUT_INDEX) as file:
                # Examples share their instructions and templates, so that half of one says nothing.
                texts = () if self.examples else (document.text for document in scan.heldout())
                HeldoutIndex.of(texts).save(file)

    def _encode(self, scan: Scan, tasks: Sequence[Task], tokenizer: TextTokenizer) -> tuple[list[PackEntry], list[int]]:
        """The packs of the training documents, and the held-out documents that those contain."""
        name, column = tokenizer.fingerprint, self.settings.column
        self._each_task(
            "encode",
            tasks,
            lambda task: partial(encode_task, scan, task, column, self.depot, name, tokenizer.separator, self.examples),
        )
        records = [self._record("encode", task.index) for task in tasks]
        packs = [pack for record in records for pack in packs_of(record)]
        return packs, sorted({number for record in records for number in record["contained"]})

    def _heldout(
        self, scan: Scan, dropped: Sequence[int], tokenizer: TextTokenizer
    ) -> tuple[PackSeries, dict[str, float]]:
        """The held-out packs, and what `xz` makes of their documents (bits per byte), if they are text."""
        self.progress("heldout", 0, 1)
        heldout, sizes = encode_heldout(
            scan, dropped, self.depot, tokenizer.fingerprint, tokenizer.separator, self.examples
        )
        total = sum(sizes)
        if not total or self.examples or not baseline.available():
            self.progress("heldout", 1, 1)
            return heldout, {}
        ends = np.cumsum(sizes).tolist()
        each = list(zip([0, *ends[:-1]], ends, strict=True))
        path = self.journal.file(HELDOUT_TEXT)
        shares = [each[i :: max(1, self.workers - 1)] for i in range(max(1, self.workers - 1))]
        together, *apart = run_calls(
            [partial(_compress, path, bounds) for bounds in ([(0, total)], *shares)], self.workers
        )
        self.progress("heldout", 1, 1)
        baselines = {
            "xz -9e, each document": baseline.bits_per_byte(sum(apart), total),
            "xz -9e, concatenated": baseline.bits_per_byte(together, total),
        }
        return heldout, baselines

    def _example_format(
        self, tasks: Sequence[Task], tokenizer: TextTokenizer, heldout: PackSeries
    ) -> tuple[ExampleFormat | None, int]:
        """How examples are stored, if they are, and how many were too long. Errors: `DataError` if all were."""
        if self.examples is None:
            return None, 0
        records = [self._record("encode", task.index) for task in tasks]
        n_too_long = heldout.n_too_long + sum(record["n_too_long"] for record in records)
        longest = max([*(record["longest"] for record in records), heldout.longest], key=lambda pair: pair[0])
        return example_format(self.depot, self.examples.settings, tokenizer, *longest), n_too_long

    def _record(self, stage: str, task: int) -> dict[str, Any]:
        record = self.journal.read(f"{stage}/{task:05d}")
        assert record is not None, (stage, task)
        return record


def _train(scan: Scan, bounds: Bounds, vocab_size: int) -> TextTokenizer:
    return train_tokenizer(scan.sample(bounds), vocab_size)


def _compress(path: Path, bounds: Sequence[tuple[int, int]]) -> int:
    return baseline.xz_sizes(path, bounds)
