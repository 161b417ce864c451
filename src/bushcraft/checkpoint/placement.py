"""Where the pieces of a rank's tensors go: which file, at which byte. The files become objects as they are.

A piece is a block of rows and becomes one chunk. A tensor begins at a multiple of 64 bytes, so that it can be copied
there as a tensor; what is between two tensors is zero.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bushcraft.checkpoint.objects import Piece
from bushcraft.checkpoint.save_parts import OBJECT_BYTES, row_blocks
from bushcraft.parallel.box import Box, Part

ALIGNMENT = 64


class Block(NamedTuple):
    """Rows of a part that lie one after another in a file: what is copied at once."""

    name: str
    box: Box
    pieces: tuple[Piece, ...]

    @property
    def file(self) -> int:
        return self.pieces[0].file

    @property
    def begin(self) -> int:
        return self.pieces[0].begin

    @property
    def end(self) -> int:
        return self.pieces[-1].end


def place(parts: Mapping[str, Part]) -> list[Block]:
    """The blocks of all that this rank writes, in the order of the names."""
    return list(_blocks(parts))


def file_sizes(blocks: list[Block]) -> list[int]:
    """Bytes of each file."""
    sizes: dict[int, int] = {}
    for block in blocks:
        sizes[block.file] = block.end
    return [sizes[number] for number in sorted(sizes)]


def _blocks(parts: Mapping[str, Part]) -> Iterator[Block]:
    number = begin = 0
    for name in sorted(parts):
        part = parts[name]
        if not part.writes or part.box.is_empty:
            continue
        pieces: list[Piece] = []
        begin = -(-begin // ALIGNMENT) * ALIGNMENT
        for box in row_blocks(part.box, part.tensor.element_size()):
            if begin >= OBJECT_BYTES:
                if pieces:
                    yield _block(name, pieces)
                number, begin, pieces = number + 1, 0, []
            end = begin + box.numel * part.tensor.element_size()
            pieces.append(Piece(name, box.offset, box.shape, number, begin, end))
            begin = end
        yield _block(name, pieces)


def _block(name: str, pieces: list[Piece]) -> Block:
    first = pieces[0]
    if not first.shape:
        return Block(name, Box((), ()), tuple(pieces))
    rows = sum(piece.shape[0] for piece in pieces)
    return Block(name, Box(first.offset, (rows, *first.shape[1:])), tuple(pieces))
