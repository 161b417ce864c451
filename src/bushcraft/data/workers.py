"""A pool of processes that run independent calls, with clear ends: an error, an interrupt, a killed process.

Processes are spawned, not forked: threads and locks of the parent do not come along. They live no longer
than their parent, whatever happens to it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bushcraft.errors import StoreError

Result = TypeVar("Result")
_WAITING_CALLS = 2
"""Calls handed over for each process: one at work, one waiting."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_calls(
    calls: Sequence[Callable[[], Result]],
    workers: int,
    on_done: Callable[[int, Result], None] = lambda _index, _result: None,
    in_process: bool = True,
) -> list[Result]:
    """Run picklable `calls` in `workers` processes; their results in order. `on_done` hears of each as it ends.

    With `in_process` one worker, or one call, needs no other process. Errors: what a call raises, after which
    no other is started; `StoreError` if a process was killed.
    """
    results: dict[int, Result] = {}
    if in_process and min(workers, len(calls)) <= 1:
        for index, call in enumerate(calls):
            results[index] = call()
            on_done(index, results[index])
        return [results[index] for index in range(len(calls))]
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(calls)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(workers > 1,),
    )
    try:
        todo, running = iter(enumerate(calls)), dict[Future[Result], int]()
        while len(results) < len(calls):
            for index, call in todo:
                running[pool.submit(call)] = index
                if len(running) >= workers * _WAITING_CALLS:
                    break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                results[index] = future.result()
                on_done(index, results[index])
    except BrokenProcessPool:
        raise StoreError(
            "a worker process was killed, perhaps for want of memory",
            "Run the same command again, with fewer --workers; what was finished is kept",
        ) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[index] for index in range(len(calls))]


def _start_worker(one_thread: bool) -> None:
    """An interrupt is the parent's to handle; with several processes each uses one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if one_thread:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
