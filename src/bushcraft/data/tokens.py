"""Verified random access to the token stream of a split, through a bounded cache of checked frames.

A frame is copied out of the depot into our own memory and checked there: what is served is the copy that
was checked, whatever happens to the disk or the page cache afterwards. After an eviction it is read and
checked again. Rows are gathered by one numpy call for as many rows as lie inside one frame each.
"""

import mmap
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bushcraft.data.manifest import PackTable, Split
from bushcraft.store.depot import Depot
from bushcraft.store.pack import FRAME_BYTES, PackReader

MAX_OPEN_PACKS = 4096
"""Footers kept; one is about 20 KB for a pack of 256 MiB."""


class TokenStream:
    """The tokens of all packs of a split, one after the other, in place of a memory-mapped file."""

    def __init__(self, depot: Depot, split: Split, itemsize: int, cache_bytes: int) -> None:
        """`cache_bytes`: memory for checked frames; at least two frames are kept."""
        self.depot = depot
        self.packs = PackTable(depot, split)
        self.dtype = np.dtype({2: "<u2", 4: "<u4"}[itemsize])
        self._per_frame = FRAME_BYTES // itemsize
        n_tokens = self.packs.n_tokens
        self._pack_begin = np.concatenate([[0], np.cumsum(n_tokens)])
        self._first_frame = np.concatenate([[0], np.cumsum(-(-n_tokens // self._per_frame))])
        self._readers: OrderedDict[int, PackReader] = OrderedDict()
        n_slots = max(2, min(cache_bytes // FRAME_BYTES, int(self._first_frame[-1])))
        # Zeroed pages cost nothing until they are touched, so both arrays may be large. Slot 0 means absent.
        self._arena = np.zeros((n_slots + 1) * self._per_frame, self.dtype)
        # Not np.zeros: it asks for huge pages, and each first touch of a large table would clear 2 MiB.
        self._slot_of_frame = np.frombuffer(mmap.mmap(-1, 4 * max(1, int(self._first_frame[-1]))), np.int32)
        self._frame_in_slot = np.full(n_slots + 1, -1, np.int64)
        self._last_used = np.zeros(n_slots + 1, np.int64)
        self._n_used = 0
        self._clock = 0

    def __len__(self) -> int:
        """Tokens in the stream."""
        return int(self._pack_begin[-1])

    def rows(self, begins: NDArray[np.int64], width: int) -> NDArray[Any]:
        """Tokens [begin, begin + width) for each of `begins` (N,): (N, width), zeros past the end of the stream.

        Errors: `CorruptObjectError` that names the pack and the byte range; the bytes are not served.
        """
        frames_per_row = 2 + (width - 1) // self._per_frame
        n_slots = len(self._last_used) - 1
        # Where every frame has a slot nothing is evicted; else a part may need no more frames than there are slots.
        rows_at_once = begins.size if n_slots >= len(self._slot_of_frame) else n_slots // frames_per_row
        step = max(1, rows_at_once)
        parts = [self._gather(begins[first : first + step], width) for first in range(0, begins.size, step)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, width), self.dtype), *parts])

    def locate(self, token: int) -> tuple[PackReader, int]:
        """The pack that holds the token at that place of the stream, and its place in the pack."""
        pack = int(np.searchsorted(self._pack_begin, token, side="right")) - 1
        return self._reader(pack), token - int(self._pack_begin[pack])

    def documents(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the documents `index` (N,) begin in the stream, and how many tokens they have, (N,) each.

        Errors: `CorruptObjectError`, `StoreError`.
        """
        pack = np.searchsorted(self._first_document, index, side="right") - 1
        begin, end = np.empty_like(index), np.empty_like(index)
        for p in np.unique(pack).tolist():
            mine = np.flatnonzero(pack == p)
            inside, starts = index[mine] - self._first_document[p], self._reader(p).starts
            following = np.minimum(inside + 1, len(starts) - 1)
            begin[mine] = self._pack_begin[p] + starts[inside]
            end[mine] = np.where(following == inside, self._pack_begin[p + 1], self._pack_begin[p] + starts[following])
        return begin, end - begin

    @cached_property
    def _first_document(self) -> NDArray[np.int64]:
        """The number of each pack's first document, and that of all documents."""
        return np.concatenate([[0], np.cumsum(self.packs.n_documents)])

    def _gather(self, begins: NDArray[np.int64], width: int) -> NDArray[Any]:
        self._clock += 1
        pack = np.searchsorted(self._pack_begin, begins, side="right") - 1
        place = begins - self._pack_begin[pack]
        frame = self._first_frame[pack] + place // self._per_frame
        offset = place % self._per_frame
        frame_end = np.minimum(self._per_frame, self._pack_begin[pack + 1] - begins + offset)
        if width > self._per_frame:
            out = np.empty((begins.size, width), self.dtype)
        else:
            self._ensure(frame)
            stride = self._arena.itemsize
            windows = as_strided(self._arena, (self._arena.size - width + 1, width), (stride, stride), writeable=False)
            starts = self._slot_of_frame[frame].astype(np.int64) * self._per_frame + offset
            out = windows[np.minimum(starts, len(windows) - 1)]
        for row in np.flatnonzero(offset + width > frame_end).tolist():
            self._copy(int(begins[row]), out[row])  # the gather read on into another frame: write all of it anew
        return out

    def _copy(self, begin: int, row: NDArray[Any]) -> None:
        """Write one row that crosses frames, packs or the end of the stream, with zeros past the end."""
        done, stop = 0, min(len(row), len(self) - begin)
        while done < stop:
            place = begin + done
            pack = int(self._pack_begin.searchsorted(place, side="right")) - 1
            inside = place - int(self._pack_begin[pack])
            frame = int(self._first_frame[pack]) + inside // self._per_frame
            offset = inside % self._per_frame
            take = min(stop - done, self._per_frame - offset, int(self._pack_begin[pack + 1]) - place)
            if not self._slot_of_frame[frame]:
                self._ensure(np.array([frame]))
            slot = int(self._slot_of_frame[frame])
            self._last_used[slot] = self._clock
            at = slot * self._per_frame + offset
            row[done : done + take] = self._arena[at : at + take]
            done += take
        row[done:] = 0

    def _ensure(self, frames: NDArray[np.int64]) -> None:
        """Have all `frames` checked and in the arena; those in use at this tick of the clock stay."""
        slots = self._slot_of_frame[frames]
        self._last_used[slots] = self._clock
        absent = slots == 0
        if not absent.any():
            return
        for frame in np.unique(frames[absent]).tolist():
            pack = int(np.searchsorted(self._first_frame, frame, side="right")) - 1
            data = np.frombuffer(self._reader(pack).frame(frame - int(self._first_frame[pack])), self.dtype)
            slot = self._free_slot()
            self._arena[slot * self._per_frame : slot * self._per_frame + data.size] = data
            self._slot_of_frame[frame], self._frame_in_slot[slot] = slot, frame
            self._last_used[slot] = self._clock

    def _free_slot(self) -> int:
        if self._n_used < len(self._last_used) - 1:
            self._n_used += 1
            return self._n_used
        slot = 1 + int(self._last_used[1:].argmin())
        self._slot_of_frame[self._frame_in_slot[slot]] = 0
        return slot

    def _reader(self, pack: int) -> PackReader:
        if pack in self._readers:
            self._readers.move_to_end(pack)
        else:
            self._readers[pack] = PackReader(self.depot, self.packs[pack])
            if len(self._readers) > MAX_OPEN_PACKS:
                self._readers.popitem(last=False)
        return self._readers[pack]
