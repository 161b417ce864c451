"""Requests to one bucket that end in bounded time: with time limits, retries, hedges, a limiter and a circuit.

Every method gives its answer or raises `UnreachableError` (no answer, for now), `Failed` (an answer that is none) or
`StoreError` (credentials). Keys are paths below the bucket's prefix.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import obstore
from blake3 import blake3
from obstore.store import MemoryStore

from bushcraft.errors import UnreachableError
from bushcraft.store.buckets.clients import (
    PART_BYTES,
    PARTS_AT_ONCE,
    SLOWEST,
    BucketClient,
    BucketOptions,
    Place,
    make_client,
)
from bushcraft.store.buckets.failures import Failed, Kind
from bushcraft.store.buckets.hedge import HedgeBudget, Latencies, hedged
from bushcraft.store.buckets.limiter import Limiter
from bushcraft.store.buckets.resilience import Circuit, RetryPolicy, Timing
from bushcraft.store.buckets.transport import Transport

T = TypeVar("T")

ATTEMPTS_OF_A_PART = 4
PAGE = 1000
"""Keys of a listing at a time, as providers give them."""
SMALL = 1024 * 1024
"""Bytes of an object that is read at once, and twice if that is late."""
PIECE_BYTES = 4 * 1024 * 1024
"""Of an object that is read in a stream."""


class Endpoint:
    """A bucket as its server lets it be used. Thread-safe."""

    def __init__(self, place: Place, options: BucketOptions, ranges: bool = True, timing: Timing | None = None) -> None:
        self.place = place
        self.options = options
        self.ranges = ranges
        """Whether the server knows ranges; what it does settles it."""
        self._timing = timing or Timing()
        self._policy = RetryPolicy(options.attempts, deadline=options.deadline)
        self.circuit = Circuit(self._timing)
        self.limiter = Limiter(options.requests, self._timing)
        self.latencies = Latencies()
        self.budget = HedgeBudget()
        self._memory = MemoryStore()
        self._transport = Transport(self._client)

    def _client(self, role: str) -> BucketClient:
        if self.place.scheme == "memory":
            return self._memory
        return make_client(self.place, self.options, ATTEMPTS_OF_A_PART if role == "parts" else 0)

    # Requests

    def head(self, key: str) -> int:
        """Bytes of an object."""

        async def request(role: str) -> int:
            return int((await obstore.head_async(self._transport.client(role), key))["size"])

        return self._run(lambda: self._read(request, 0))

    def modified(self, key: str) -> float:
        """When an object was written by the server's clock, in seconds since 1970."""

        async def request(role: str) -> float:
            return (await obstore.head_async(self._transport.client(role), key))["last_modified"].timestamp()

        return self._run(lambda: self._read(request, 0))

    def get(self, key: str) -> bytes:
        """All bytes of an object."""

        async def request(role: str) -> tuple[Any, bytes | None]:
            result = await obstore.get_async(self._transport.client(role), key)
            return result, bytes(await result.bytes_async()) if result.meta["size"] <= SMALL else None

        async def whole() -> bytes:
            result, data = await self._read(request, SMALL, self.options.timeout)
            if data is not None:
                return data
            async with asyncio.timeout(self.options.seconds(result.meta["size"])):
                return bytes(await result.bytes_async())

        return self._run(whole)

    def get_range(self, key: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of an object, which are not empty; fewer where it ends before."""

        async def request(role: str) -> bytes:
            return bytes(await obstore.get_range_async(self._transport.client(role), key, start=begin, end=end))

        if self.ranges:
            try:
                return self._run(lambda: self._read(request, end - begin))
            except Failed as failed:
                if failed.kind is not Kind.WHOLE:
                    raise
                self.ranges = False
        return self._cut(key, begin, end)

    def _cut(self, key: str, begin: int, end: int) -> bytes:
        """As `get_range`, from a server that knows none: its answer is dropped as soon as it went past."""

        async def request() -> bytes:
            kept, at = bytearray(), 0
            async for piece in self._pieces(key):
                kept += piece[max(0, begin - at) : max(0, end - at)]
                at += len(piece)
                if at >= end:
                    break
            return bytes(kept)

        return self._run(request)

    def digest(self, key: str) -> str:
        """The BLAKE3 hash of an object that is read once, in bounded memory."""

        async def request() -> str:
            hasher = blake3()
            async for piece in self._pieces(key):
                hasher.update(piece)
            return hasher.hexdigest()

        return self._run(request)

    def put(self, key: str, data: bytes | memoryview, create: bool = False) -> str | None:
        """Store bytes in one request; the ETag. With `create`, `Failed(EXISTS)` if something is there."""

        async def request() -> str | None:
            async with asyncio.timeout(self.options.seconds(len(data))):
                client, mode = self._transport.client("first"), "create" if create else "overwrite"
                result = await obstore.put_async(client, key, data, mode=mode, use_multipart=False)  # type: ignore[arg-type]
            return result["e_tag"]

        return self._run(request, len(data))

    def put_parts(self, key: str, source: Path | memoryview, size: int) -> None:
        """Store a file or large bytes in parts, `PARTS_AT_ONCE` of them in memory."""
        part = max(PART_BYTES, -(-size // 10_000))

        async def request() -> None:
            async with asyncio.timeout(self.options.seconds(size)):
                client = self._transport.client("parts")
                await obstore.put_async(
                    client, key, source, use_multipart=True, chunk_size=part, max_concurrency=PARTS_AT_ONCE
                )

        self._run(request, size)

    def pages(self, prefix: str, after: str = "") -> Iterator[list[tuple[str, int]]]:
        """Keys below the folder `prefix` that come after the key `after`, with sizes, as the server orders them."""
        stream: Any = None

        async def request() -> list[tuple[str, int]]:
            nonlocal stream
            waiting, stream = stream, None  # what failed is asked for again, from the last key that came
            client = self._transport.client("first")
            if waiting is None:
                waiting = obstore.list(client, prefix, offset=after or None, chunk_size=PAGE)
            async with asyncio.timeout(self.options.timeout):
                page: list[Any] = await anext(waiting, [])
            stream = waiting
            return [(meta["path"], meta["size"]) for meta in page]

        while True:
            page: list[tuple[str, int]] = self._run(request)
            if not page:
                return
            yield page
            after = page[-1][0]

    def delete(self, key: str) -> None:
        async def request() -> None:
            async with asyncio.timeout(self.options.timeout):
                await obstore.delete_async(self._transport.client("first"), key)

        self._run(request)

    async def _pieces(self, key: str) -> Any:
        client = self._transport.client("first")
        async with asyncio.timeout(self.options.timeout):
            stream = (await obstore.get_async(client, key)).stream(PIECE_BYTES)
        while True:
            async with asyncio.timeout(self.options.seconds(PIECE_BYTES)):
                piece = await anext(stream, None)
            if piece is None:
                return
            yield piece

    async def _read(self, request: Callable[[str], Coroutine[Any, Any, T]], n_bytes: int, limit: float = 0.0) -> T:
        """A request that may be doubled if it is late; its time limit is in seconds, or what its bytes need."""
        self.budget.request()
        begun = self._timing.now()
        async with asyncio.timeout(limit or self.options.seconds(n_bytes)):
            result = await hedged(
                lambda: request("first"),
                lambda: request("hedge"),
                self.latencies.late_after(n_bytes),
                self.budget.take,
            )
        self.latencies.observe(n_bytes, self._timing.now() - begun)
        return result

    # Attempts

    def _run(self, request: Callable[[], Coroutine[Any, Any, T]], n_bytes: int = 0) -> T:
        """The answer to a request, tried again as far as that helps."""
        self._transport.refuse_fork()
        begun = self._timing.now()
        deadline = begun + self._policy.deadline + 2 * n_bytes / SLOWEST
        attempts = self.circuit.attempts(self._policy.attempts)
        if not attempts:
            raise self._unreachable(f"it did not answer, and is asked again in {self.circuit.seconds_left():.0f} s")
        failures, renewed = 0, False
        while True:
            generation = self._transport.generation
            try:
                answer = self._attempt(request, deadline)
            except Failed as failed:
                if failed.kind is Kind.DENIED and not renewed:
                    renewed = True
                    self._transport.renew(generation)  # credentials expire; those of now may be others
                    continue
                if not failed.may_pass:
                    self.circuit.answered()
                    raise
                failures += 1
                wait = self._policy.wait(failures, self._timing)
                if failures >= attempts or self._timing.now() + wait > deadline:
                    self.circuit.failed(begun)
                    raise self._unreachable(failed.why) from None
                self._timing.sleep(wait)
            else:
                self.circuit.answered()
                return answer

    def _attempt(self, request: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        try:
            with self.limiter.slot(deadline - self._timing.now()) as begun:
                answer = self._transport.call(request())
        except TimeoutError:
            raise Failed(Kind.THROTTLED, "it bears no more requests now") from None
        except Failed as failed:
            if failed.kind is Kind.THROTTLED:
                self.limiter.slow_down(begun)
            raise
        self.limiter.went_well()
        return answer

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"depot {self} cannot be reached: {why}", "It is tried again by itself; another depot may serve meanwhile"
        )

    def __str__(self) -> str:
        return f"{self.place} at {self.options.endpoint}" if self.options.endpoint else str(self.place)


def make_endpoint(url: str, options: Mapping[str, object], ranges: bool = True) -> Endpoint:
    """Errors: `StoreError` for a URL or an option that cannot be."""
    place = Place.parse(url)
    return Endpoint(place, BucketOptions.parse(options, str(place)), ranges)
