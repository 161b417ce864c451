"""What a block keeps for its backward pass, and what it computes again (Chen et al. 2016, arXiv:1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bushcraft.model import precision
from bushcraft.model.transformer import Block

Recompute = Literal["none", "selective", "full"]

_ops = torch.ops
KEPT = {
    _ops.bushcraft.segment_attention.default,
    _ops.bushcraft.varlen_attention.default,
    _ops.bushcraft.product.default,
    _ops.aten.mm.default,
    _ops.aten.linear.default,
    _ops.aten.addmm.default,
    _ops.aten._scaled_dot_product_flash_attention.default,
}
"""Operators whose results "selective" keeps: products and attention, which cost most to make again."""


def recompute_layers(model: nn.Module, what: Recompute) -> None:
    """Let each block of a model compute again, in its backward pass, all but its input ("full") or all but the results
    of products and attention ("selective"). What is between them costs memory, and hardly any time."""
    if what == "none":
        return
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = partial(_checkpointed, what, module.forward)  # type: ignore[method-assign]


def _checkpointed(what: Recompute, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if what == "selective" else {}
    )
    again = partial(_in_precision, precision.present_precision(), forward)
    return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts)


def _in_precision(name: str, forward: Callable[..., Any], *inputs: Any) -> Any:
    """The backward pass runs outside of the block that set the precision."""
    with precision.compute_precision(name):
        return forward(*inputs)


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
