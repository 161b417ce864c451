"""Attention on CUDA by FlexAttention: what the flash kernels cannot do (soft caps, fp32, any even head width).

FlexAttention skips blocks of 128 queries × 128 keys in which nobody sees anything, and asks for single pairs only in
blocks where some are hidden. Which block is which follows from the bounds of the pieces by arithmetic over runs (the
queries of one piece in one block, which see one range of keys); no function is evaluated for each pair.
In a block that is partly seen a pair is looked up in the first and last key that its query sees.

Rows are laid end to end, because the keys of a piece may lie in another row than its queries.

Source: Dong et al. 2024 (arXiv:2412.05496).

Shapes: B rows, S query positions, T key positions, H query heads, K key/value heads, E head width, N = B * S queries,
M = B * T keys, Q blocks of queries, C blocks of keys.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bushcraft.model.attention_pieces import flattened, key_bounds, packed, trimmed, unpacked

_kernel: Callable[..., Tensor] = cast(Any, flex_attention)

BLOCK = 128

Tables = list[Tensor]
"""First and end of the keys of each query, (N,); then how many (1, 1, Q) and which (1, 1, Q, C) key blocks a query
block sees in part, and as much of those it sees wholly; and the same of query blocks, by key block. All int32."""


def flex_segment_attention(
    q_BSHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    pieces: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """Attention inside of pieces (`attention.Mask`): (B, S, H, E). A compiler takes it into its graph."""
    if k_BTKE.shape[1] == 0:  # the kernel wants a key; nobody sees this one
        k_BTKE, v_BTKE = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k_BTKE, v_BTKE))
    mask = block_mask(pieces, window, q_BSHE.shape, k_BTKE.shape, q_BSHE.device)
    q, k, v = (x.flatten(0, 1).transpose(0, 1).unsqueeze(0) for x in (q_BSHE, k_BTKE, v_BTKE))
    capped = None if soft_cap is None else _soft_capped(soft_cap)
    kernel = _kernel if torch.compiler.is_compiling() else _compiled()
    out = kernel(q, k, v, score_mod=capped, block_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(q_BSHE.shape)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    """The kernel for a caller who is not compiled himself; made late, for the compiler takes seconds to load."""
    return torch.compile(_kernel)


def block_mask(
    pieces: Tensor, window: int | None, queries: torch.Size, keys: torch.Size, device: torch.device
) -> BlockMask:
    """The mask of queries (B, S, …) and keys (B, T, …) laid end to end, as FlexAttention wants it."""
    first, end, *tables = block_tables(pieces, window, *queries[:2], *keys[:2], device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = (first[query] <= key) & (key < end[query])
        return seen

    lengths = queries[0] * queries[1], keys[0] * keys[1]
    mask: BlockMask = BlockMask(lengths, *tables, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=visible)  # type: ignore[misc]
    return mask


def _soft_capped(soft_cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, *_where: Tensor) -> Tensor:
        return soft_cap * torch.tanh(score / soft_cap)

    return capped


@torch.library.custom_op("bushcraft::block_tables", mutates_args=())
def block_tables(
    pieces: Tensor,
    window: int | None,
    n_rows: int,
    width: int,
    n_key_rows: int,
    key_width: int,
    device: torch.device,
) -> Tables:
    """The tables of a mask; their shapes do not depend on the pieces, so that nothing is compiled again."""
    tables = _tables(packed(pieces), window, n_rows, width, n_key_rows, key_width, device)
    return [table.clone() for table in tables]  # a compiler may write over what an operator returns


@block_tables.register_fake
def _(
    _pieces: Tensor,
    _window: int | None,
    n_rows: int,
    width: int,
    n_key_rows: int,
    key_width: int,
    device: torch.device,
) -> Tables:
    n, q, c = n_rows * width, _ceil(n_rows * width), _ceil(n_key_rows * key_width)
    by_query, by_key = [(1, 1, q), (1, 1, q, c)], [(1, 1, c), (1, 1, c, q)]
    shapes: list[tuple[int, ...]] = [(n,), (n,), *by_query, *by_query, *by_key, *by_key]
    return [torch.empty(shape, dtype=torch.int32, device=device) for shape in shapes]


@lru_cache(maxsize=16)
def _tables(
    pieces: bytes, window: int | None, n_rows: int, width: int, n_key_rows: int, key_width: int, device: torch.device
) -> Tables:
    n_positions = n_rows * width
    columns = flattened(trimmed(unpacked(pieces), window), width, key_width)
    first, end = key_bounds(columns, window, n_positions)
    some, whole = _blocks_seen(_runs(columns), first, end, _ceil(n_positions), _ceil(n_key_rows * key_width), device)
    partial = some & ~whole
    bounds = [x.int().to(device) for x in (first, end)]
    return [*bounds, *_ordered(partial), *_ordered(whole), *_ordered(partial.T), *_ordered(whole.T)]


def _runs(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces cut where a block of queries ends: the first and the last query of each run."""
    first_query, end_query = columns[:, 0], columns[:, 0] + columns[:, 1]
    first_block = first_query // BLOCK
    n_blocks = (end_query - 1) // BLOCK - first_block + 1
    place = torch.arange(int(n_blocks.sum())) - (n_blocks.cumsum(0) - n_blocks).repeat_interleave(n_blocks)
    block = first_block.repeat_interleave(n_blocks) + place
    begin = torch.maximum(first_query.repeat_interleave(n_blocks), block * BLOCK)
    end = torch.minimum(end_query.repeat_interleave(n_blocks), (block + 1) * BLOCK)
    return begin, end - 1


def _blocks_seen(
    runs: tuple[Tensor, Tensor], first: Tensor, end: Tensor, n_blocks: int, n_key_blocks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Whether a query of a block sees a key of another, and whether all see all of them: (Q, C) bool each."""
    one, last = runs
    block, size = one // BLOCK, last - one + 1
    some = _counted(block, first[one] // BLOCK, _ceil(end[last]), torch.ones_like(size), n_blocks, n_key_blocks, device)
    whole = _counted(block, _ceil(first[last]), end[one] // BLOCK, size, n_blocks, n_key_blocks, device)
    return some > 0, whole == BLOCK


def _counted(
    row: Tensor, begin: Tensor, end: Tensor, weight: Tensor, n_rows: int, n_columns: int, device: torch.device
) -> Tensor:
    """How much weight lies on each place of a table, from ranges [begin, end) of a row."""
    end = torch.maximum(begin, end)
    steps = torch.zeros(n_rows, n_columns + 1, dtype=torch.int64, device=device)
    for column, change in ((begin, weight), (end, -weight)):
        steps.index_put_((row.to(device), column.to(device)), change.to(device), accumulate=True)
    return steps.cumsum(1)[:, :-1]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many places of each row are true (1, 1, Q), and their numbers before those of the others (1, 1, Q, C)."""
    numbers = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], numbers.int()[None, None].contiguous()


def _ceil(n: Any) -> Any:
    """Blocks that hold n positions."""
    return (n + BLOCK - 1) // BLOCK
