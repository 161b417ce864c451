import lzma
import random
from pathlib import Path

import pytest

from bushcraft.data.compression_baseline import bits_per_byte, xz_size, xz_sizes

CODE = Path(__file__).read_bytes()
RANDOM = random.Random(0)
PROSE = " ".join(RANDOM.choice(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]) for _ in range(40_000)).encode()


@pytest.mark.parametrize("data", [b"", b"x", CODE, CODE * 50, PROSE, RANDOM.randbytes(70_000), bytes(3_000_000)])
def test_the_small_dictionary_gives_the_size_of_plain_xz_9e(data: bytes) -> None:
    assert xz_size(data) == len(lzma.compress(data, lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))


def test_sizes_of_ranges_add_up_and_learning_across_documents_pays(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(CODE * 3)
    bounds = [(i * len(CODE), (i + 1) * len(CODE)) for i in range(3)]
    assert xz_sizes(path, bounds) == 3 * xz_size(CODE)
    assert xz_sizes(path, [(0, 3 * len(CODE))]) < 1.2 * xz_size(CODE)
    assert bits_per_byte(25, 100) == 2.0
