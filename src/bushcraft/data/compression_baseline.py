"""What a general compressor makes of the held-out documents: the number that a language model must beat.

`xz -9e` knows nothing of the training set. Per document it starts afresh each time, as a model without any
training would; over the concatenation it learns from one document for the next.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bushcraft.store.durable import machine_errors

_SMALLEST_DICTIONARY = 4096


def available() -> bool:
    """Whether this Python was built with xz."""
    return importlib.util.find_spec("_lzma") is not None


def xz_size(data: bytes) -> int:
    """Bytes of `xz -9e < data`.

    The dictionary need not be larger than the data, which saves most of the time and memory of a small one
    (-9 asks for 64 MiB, that is 674 MiB of memory: xz(1)); the size is the same.
    """
    import lzma

    preset = 9 | lzma.PRESET_EXTREME
    dictionary = max(_SMALLEST_DICTIONARY, min(len(data), 64 << 20))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    return len(lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=filters))


def xz_sizes(path: Path, bounds: Sequence[tuple[int, int]]) -> int:
    """The sum of `xz_size` over the byte ranges `bounds` of a file. Errors: `StoreError`."""
    total = 0
    with machine_errors("read", path), path.open("rb") as file:
        for begin, end in bounds:
            file.seek(begin)
            total += xz_size(file.read(end - begin))
    return total


def bits_per_byte(compressed: int, original: int) -> float:
    """Bits for each byte of the original."""
    return 8 * compressed / original
