"""What the tests of attention share: random masks, and the definition of attention as a dense formula in float64."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from bushcraft.model.attention import Mask

Shape = tuple[int, int]


def seen(mask: Mask, queries: Shape, keys: Shape) -> Tensor:
    """(B, S, B, T): whether a query sees a key, pair by pair from the words of the definition."""
    found = torch.zeros(*queries, *keys, dtype=torch.bool)
    for q_row, q_start, n_queries, k_row, k_start, n_keys, causal in mask.pieces.tolist():
        a, b = torch.arange(n_queries)[:, None], torch.arange(n_keys)
        ahead = b - a - (n_keys - n_queries)
        inside = torch.tensor(True) if mask.window is None else ahead.abs() < mask.window
        visible = inside & ~(ahead > 0) if causal else inside.expand(n_queries, n_keys)
        found[q_row, q_start : q_start + n_queries, k_row, k_start : k_start + n_keys] = visible
    return found


def dense(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None = None, soft_cap: float | None = None
) -> Tensor:
    """Attention from a matrix of all scores, in float64; zeros for a query that sees nothing."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhe,ckhe->bqhck", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    weights = scores.masked_fill(~seen[:, :, None], float("-inf")).flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("bqhck,ckhe->bqhe", weights.nan_to_num(0.0), v)


@dataclass(frozen=True)
class Case:
    """A mask, the shapes that it is for, and the numbers that attention takes."""

    mask: Mask
    queries: Shape
    keys: Shape
    groups: int
    scale: float | None
    soft_cap: float | None

    def inputs(self, dtype: torch.dtype, width: int = 8, sharpness: float = 1.0, device: str = "cpu") -> list[Tensor]:
        """Random queries (B, S, 4, E), keys and values, differentiable."""
        torch.manual_seed(0)
        q = sharpness * torch.randn(*self.queries, 4, width)
        k, v = (torch.randn(*self.keys, 4 // self.groups, width) for _ in range(2))
        return [x.to(device, dtype).requires_grad_() for x in (q, k, v)]

    def reference(self, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
        """Output and gradients, in float64."""
        leaves = [x.detach().double().requires_grad_() for x in inputs]
        out = dense(*leaves, seen(self.mask, self.queries, self.keys).to(direction.device), self.scale, self.soft_cap)
        return [out, *torch.autograd.grad(out, leaves, direction.double())]


@st.composite
def cases(draw: st.DrawFn, longest: int = 40, soft_caps: bool = True) -> Case:
    """Pieces of all kinds in any order, some empty, with gaps between them, over rows of other numbers and widths."""
    pieces: list[list[int]] = []
    n_rows, n_key_rows = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    used, key_used = [0] * n_rows, [0] * n_key_rows
    for _ in range(draw(st.integers(0, 5))):
        row, key_row = draw(st.integers(0, n_rows - 1)), draw(st.integers(0, n_key_rows - 1))
        n_queries, n_keys, causal = draw(st.integers(0, longest)), draw(st.integers(0, longest)), draw(st.booleans())
        if causal:
            n_keys = n_queries + n_keys
        start = used[row] + draw(st.integers(0, 2))
        key_start = draw(st.integers(0, key_used[key_row]))  # keys may lie in two pieces, as a prefix does
        used[row], key_used[key_row] = start + n_queries, max(key_used[key_row], key_start + n_keys)
        pieces.append([row, start, n_queries, key_row, key_start, n_keys, causal])
    return Case(
        Mask(
            torch.tensor(draw(st.permutations(pieces)), dtype=torch.int64).view(-1, 7),
            draw(st.none() | st.integers(1, longest + 5)),
        ),
        queries=(n_rows, max(used) + draw(st.integers(0, 2))),
        keys=(n_key_rows, max(key_used) + draw(st.integers(0, 2))),
        groups=draw(st.sampled_from([1, 2, 4])),
        scale=draw(st.none() | st.just(0.3)),
        soft_cap=draw(st.none() | st.sampled_from([0.7, 5.0])) if soft_caps else None,
    )
