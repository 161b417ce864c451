"""Requests of obstore with a time limit, from any thread, in the one process that may make them.

They run on an event loop in a thread of its own, where a request that takes too long, or lost against its double, can
be cancelled: its connection is closed at once.

obstore keeps threads of its own, which a fork does not take along: a request in the child of a process that had made
one would wait for ever. So that is refused.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from obstore.exceptions import BaseError

from bushcraft.errors import StoreError
from bushcraft.store.buckets.clients import BucketClient
from bushcraft.store.buckets.failures import failure

T = TypeVar("T")

END_SECONDS = 2.0
"""For the requests of a depot that is given up to be cancelled."""
_first_user: int | None = None
"""The process that started obstore's threads; like them, one for all depots."""


class Transport:
    """The event loop and the clients of one endpoint, made in each process when they are first used."""

    def __init__(self, make_client: Callable[[str], BucketClient]) -> None:
        self._make_client = make_client
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: dict[str, BucketClient] = {}
        self.generation = 0
        """Counts how often the credentials were read again."""

    def call(self, request: Coroutine[Any, Any, T]) -> T:
        """The result of a request. Errors: `Failed`."""
        future = asyncio.run_coroutine_threadsafe(request, self._running_loop())
        try:
            return future.result()
        except (BaseError, OSError) as error:
            raise failure(error) from None
        except BaseException:
            future.cancel()
            raise

    def client(self, role: str) -> BucketClient:
        """The client of a role ("first", "hedge" or "parts"); each has its own connections."""
        with self._lock:
            if role not in self._clients:
                self._clients[role] = self._make_client(role)
            return self._clients[role]

    def renew(self, generation: int) -> None:
        """Read the credentials again, unless another thread did since `generation`."""
        with self._lock:
            if generation == self.generation:
                self._clients.clear()
                self.generation += 1

    def refuse_fork(self) -> None:
        """Errors: `StoreError` in a process that was forked from one that had used a bucket."""
        global _first_user
        if _first_user is None:
            _first_user = os.getpid()
        elif _first_user != os.getpid():
            raise StoreError(
                "a bucket cannot be used in a process that was forked from one that had used it",
                'Start workers by spawn: multiprocessing.get_context("spawn")',
            )

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(loop,), name="bucket", daemon=True)
                thread.start()
                # The thread goes with its depot, in a process that opens many; and before the interpreter: threads of
                # obstore that call into one that ends abort the process.
                weakref.finalize(self, _end, loop, thread, os.getpid())
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
    if process != os.getpid() or loop.is_closed():  # a fork has not the thread
        return
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(END_SECONDS)
