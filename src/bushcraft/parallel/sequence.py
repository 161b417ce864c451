"""How a model computes with its positions and heads cut over ranks: `cut_model` gives modules other forward functions.

Between the layers a rank holds the positions of its part of each row, first by `context`, within that by `tensor`
(Korthikanti et al. 2022, arXiv:2205.05198). A layer gathers the parts of `tensor`, computes with this rank's heads or
hidden units, and each rank keeps its part of the sum. Attention exchanges the positions of `context` for heads
(Jacobs et al. 2023, arXiv:2309.14509), so that masks stay what they are: of whole rows.

Shapes: B rows, S positions of a row, D model width, H query heads, K key/value heads, E head width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bushcraft.model.attention import Mask
from bushcraft.model.layers import MLP, Angles, Attention, CrossAttention, Scores
from bushcraft.model.transformer import Embedding
from bushcraft.parallel.collectives import gather, heads_to_positions, positions_to_heads, reduce_scatter
from bushcraft.parallel.mesh import Mesh
from bushcraft.parallel.rules import cut
from bushcraft.parallel.vocabulary import VocabularyPart

Forward = Callable[..., Tensor]


def cut_model(model: nn.Module, mesh: Mesh, vocab_size: int) -> None:
    """Let every module of a model with this rank's weights compute its part. `vocab_size` is that of the whole."""
    if mesh.layout.sequence_parts == 1:
        return
    vocabulary = vocabulary_part(mesh, vocab_size)
    for module in model.modules():
        match module:
            case Embedding():
                _replace(module, partial(_embed, mesh, vocabulary))
            case CrossAttention():
                _replace(module, partial(_attend_across, mesh))
            case Attention():
                _replace(module, partial(_attend, mesh))
            case MLP():
                _replace(module, partial(_gathered, mesh))
            case Scores() if mesh.layout.context > 1:
                _replace(module, partial(_exchange_heads, mesh))


def vocabulary_part(mesh: Mesh, vocab_size: int) -> VocabularyPart | None:
    """This rank's part of the vocabulary, where it is cut."""
    if mesh.layout.tensor == 1:
        return None
    return VocabularyPart(*cut(vocab_size, mesh.layout.tensor, mesh.at.tensor), mesh.group("tensor"))


def positions_of(x: Tensor, mesh: Mesh) -> Tensor:
    """This rank's part by `context` of the positions, which are the second axis."""
    return x.chunk(mesh.layout.context, 1)[mesh.at.context]


def whole_positions(h_BSD: Tensor, mesh: Mesh) -> Tensor:
    """The part by `context` of what is cut by `tensor` too."""
    return gather(h_BSD, 1, mesh.group("tensor")) if mesh.layout.tensor > 1 else h_BSD


def _replace(module: nn.Module, around: Callable[..., Tensor]) -> None:
    module.forward = partial(around, module.forward)


def _embed(mesh: Mesh, vocabulary: VocabularyPart | None, forward: Forward, tokens_BS: Tensor) -> Tensor:
    tokens_BS = positions_of(tokens_BS, mesh)
    if vocabulary is None:
        return forward(tokens_BS)
    rows_BS, is_here_BS = vocabulary.rows(tokens_BS)
    x_BSD = forward(rows_BS).masked_fill(~is_here_BS.unsqueeze(-1), 0.0)
    return reduce_scatter(x_BSD, 1, mesh.group("tensor"))


def _gathered(mesh: Mesh, forward: Forward, x_BSD: Tensor, *rest: object) -> Tensor:
    """A layer whose result each rank of `tensor` has a term of."""
    if mesh.layout.tensor == 1:
        return forward(x_BSD, *rest)
    group = mesh.group("tensor")
    return reduce_scatter(forward(gather(x_BSD, 1, group), *rest), 1, group)


def _attend(mesh: Mesh, forward: Forward, x_BSD: Tensor, mask: Mask, angles: Angles) -> Tensor:
    cos, sin = (positions_of(x, mesh) for x in angles)
    return _gathered(mesh, forward, x_BSD, mask, (cos, sin))


def _attend_across(mesh: Mesh, forward: Forward, x_BSD: Tensor, encoded_BTD: Tensor, mask: Mask) -> Tensor:
    return _gathered(mesh, forward, x_BSD, whole_positions(encoded_BTD, mesh), mask)


def _exchange_heads(mesh: Mesh, forward: Forward, q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask: Mask) -> Tensor:
    group, n = mesh.group("context"), mesh.layout.context
    q, k, v = (positions_to_heads(_at_least(x, n), group) for x in (q_BSHE, k_BTKE, v_BTKE))
    return heads_to_positions(forward(q, k, v, mask), group)


def _at_least(x_BTKE: Tensor, n: int) -> Tensor:
    """With a copy of each head for every rank that has to have it, where there are fewer heads than ranks."""
    return x_BTKE if x_BTKE.shape[2] >= n else torch.repeat_interleave(x_BTKE, n // x_BTKE.shape[2], 2)
