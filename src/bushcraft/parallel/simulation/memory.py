"""Bytes of tensors that are alive, as they come and go: what an allocator would have to have at the same time.

A storage is counted from the operator that first gives it to the moment when nobody holds it any more.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Memory:
    """Counts storages that `hold` is told of; they may have no memory at all."""

    def __init__(self) -> None:
        self.now = 0
        """Bytes that are alive."""
        self._peak = 0
        self._alive: dict[int, int] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count the tensor's storage, until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._add(storage.nbytes())
            weakref.finalize(storage, self._drop, key)

    def add_for_a_moment(self, n_bytes: int) -> None:
        """What an operator allocates inside, and frees before it ends."""
        self._add(n_bytes)
        self.now -= n_bytes

    def take_peak(self) -> int:
        """The most bytes since the last call, which begins a new count."""
        peak, self._peak = self._peak, self.now
        return peak

    @contextmanager
    def follows_resizing(self) -> Iterator[None]:
        """FSDP frees gathered weights by giving their storages no bytes, which is no operator."""
        resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> object:
            found = resize(storage, size)
            if storage._cdata in self._alive:
                self._add(storage.nbytes() - self._alive[storage._cdata])
                self._alive[storage._cdata] = storage.nbytes()
            return found

        torch.UntypedStorage.resize_ = resize_and_count  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]

    def _add(self, n_bytes: int) -> None:
        self.now += n_bytes
        self._peak = max(self._peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._alive.pop(key)
