"""The rectangle of a global tensor that a rank holds: what a layout comes down to for whoever saves or loads it."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangle of a global tensor; it may be empty, and of a scalar it has no dimensions and one element."""

    offset: tuple[int, ...]
    """Where it begins, a number a dimension."""
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Box":
        """All of a tensor of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        """Elements in the box."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether there is no element in it."""
        return self.numel == 0

    def intersection(self, other: "Box") -> "Box":
        """The elements of both, perhaps none; both are boxes of one tensor."""
        begin = tuple(map(max, self.offset, other.offset))
        end = map(min, self._end, other._end)
        return Box(begin, tuple(max(0, e - b) for b, e in zip(begin, end, strict=True)))

    def within(self, outer: "Box") -> tuple[slice, ...]:
        """The index of this box in a tensor that holds `outer`, of which it is a part."""
        return tuple(slice(b - o, b - o + n) for b, n, o in zip(self.offset, self.shape, outer.offset, strict=True))

    @property
    def _end(self) -> tuple[int, ...]:
        return tuple(b + n for b, n in zip(self.offset, self.shape, strict=True))


@dataclass(frozen=True)
class Part:
    """What a rank holds of a tensor."""

    tensor: Tensor
    """The elements of `box`, in its shape."""
    box: Box
    global_shape: tuple[int, ...]
    writes: bool
    """Whether this rank saves it: of several equal copies one rank does."""

    @classmethod
    def whole(cls, tensor: Tensor) -> "Part":
        """All of `tensor`, which no other rank holds."""
        shape = tuple(tensor.shape)
        return cls(tensor, Box.whole(shape), shape, writes=True)
