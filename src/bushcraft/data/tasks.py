"""How the input is shared out: tasks of about 64 MiB of text, the same ones however many workers there are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bushcraft.data import parquet
from bushcraft.data.readers import CUT_BYTES, LARGEST_TEXT, Slice
from bushcraft.data.sources import OnBad, Source, stop_on_bad
from bushcraft.errors import DataError

LARGEST_TASK = 64 << 20
SMALLEST_TASK = 1 << 20
TASKS_AT_LEAST = 16
"""A corpus below 1 GiB is cut finer, so that there is work for several processes, and progress to see."""
COMPRESSION_RATIO = 4
"""Text for each compressed byte, about; only the sizes of tasks depend on it."""
LONE_FILE_CUTS = 64
SMALLEST_CUT = 4096


@dataclass(frozen=True)
class Task:
    """What one worker reads in one go."""

    index: int
    slices: tuple[Slice, ...]
    n_bytes: int
    """Bytes of text, as far as file sizes tell."""


def plan_tasks(
    sources: Sequence[Source], column: str = "text", cut_lone_file: bool = False, on_bad: OnBad = stop_on_bad
) -> list[Task]:
    """Share out `sources` in their order. `cut_lone_file`: a single text file becomes several documents.

    Errors: `DataError` for a parquet file that cannot be read.
    """
    task_bytes = min(LARGEST_TASK, max(SMALLEST_TASK, sum(map(_text_bytes, sources)) // TASKS_AT_LEAST))
    lone = cut_lone_file and len(sources) == 1 and sources[0].kind == "text"
    tasks: list[Task] = []
    waiting: list[Slice] = []
    waiting_bytes = 0
    for part, n_bytes in _slices(sources, column, task_bytes, lone, on_bad):
        waiting.append(part)
        waiting_bytes += n_bytes
        if waiting_bytes >= task_bytes:
            tasks.append(Task(len(tasks), tuple(waiting), waiting_bytes))
            waiting, waiting_bytes = [], 0
    if waiting:
        tasks.append(Task(len(tasks), tuple(waiting), waiting_bytes))
    return tasks


def _text_bytes(source: Source) -> int:
    return source.size * (COMPRESSION_RATIO if source.compression or source.kind == "parquet" else 1)


def _slices(
    sources: Sequence[Source], column: str, task_bytes: int, lone: bool, on_bad: OnBad
) -> Iterator[tuple[Slice, int]]:
    """(slice, bytes of text)."""
    for source in sources:
        if source.kind == "parquet":
            try:
                sizes = parquet.row_group_bytes(source.path, column)
            except DataError as error:
                on_bad(error)
                continue
            for group, size in enumerate(sizes):
                yield Slice(source, group, group + 1), size
        elif source.compression:
            yield Slice(source, 0, source.size, _cut_bytes(source, lone)), _text_bytes(source)
        elif (source.kind == "jsonl" and source.size > task_bytes) or source.size > LARGEST_TEXT:
            for begin in range(0, source.size, task_bytes):
                end = min(begin + task_bytes, source.size)
                yield Slice(source, begin, end, 0 if source.kind == "jsonl" else CUT_BYTES), end - begin
        else:
            yield Slice(source, 0, source.size, _cut_bytes(source, lone)), source.size


def _cut_bytes(source: Source, lone: bool) -> int:
    return min(CUT_BYTES, max(SMALLEST_CUT, source.size // LONE_FILE_CUTS)) if lone else 0
