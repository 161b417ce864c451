"""The one table of logical axes → mesh axes, and what follows from it: which box of a parameter a rank holds.

A layout changes nothing else: initial weights, checkpoints, the optimizer and the dry run all ask `box`.
"""

from collections.abc import Iterator

from torch import nn

from bushcraft.model.config import ModelConfig
from bushcraft.parallel.box import Box
from bushcraft.parallel.layout import Coordinate, Layout

RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    "embed": None,
    "layers": "pipe",
}
"""Which mesh axis cuts which logical axis of the weights; None: every rank has all of it."""
FIRST_AXIS = ("shard", "context")
"""The mesh axes that cut the first axis of what is left of every weight (FSDP: Rajbhandari et al. 2020,
arXiv:1910.02054)."""

Axes = tuple[str, ...]


def parameter_axes(model: nn.Module) -> dict[str, Axes]:
    """The logical axes of each parameter, by its name: those that its module or the one around it names."""
    return dict(_axes(model, ""))


def _axes(module: nn.Module, prefix: str) -> Iterator[tuple[str, Axes]]:
    named = getattr(module, "axes", {})
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, named[name]
    for name, child in module.named_children():
        if name in named:
            yield f"{prefix}{name}.weight", named[name]
        else:
            yield from _axes(child, f"{prefix}{name}.")


def is_cut_by_tensor(axes: Axes) -> bool:
    """Whether ranks that differ in `tensor` hold different parts; otherwise each has a copy, and a part of its
    gradient."""
    return any(RULES[axis] == "tensor" for axis in axes)


def box(shape: tuple[int, ...], axes: Axes, layout: Layout, at: Coordinate) -> Box:
    """What a rank holds of a parameter of that global shape."""
    held = _tensor_box(shape, axes, layout, at)
    n_parts, part = layout.shard * layout.context, at.shard * layout.context + at.context
    begin, length = cut(held.shape[0], n_parts, part)
    return Box((held.offset[0] + begin, *held.offset[1:]), (length, *held.shape[1:]))


def _tensor_box(shape: tuple[int, ...], axes: Axes, layout: Layout, at: Coordinate) -> Box:
    cuts = [
        cut(size, layout.tensor, at.tensor) if RULES[axis] == "tensor" else (0, size)
        for size, axis in zip(shape, axes, strict=True)
    ]
    return Box(tuple(begin for begin, _ in cuts), tuple(length for _, length in cuts))


def cut(size: int, n_parts: int, part: int) -> tuple[int, int]:
    """First element and length of a part: all are equally long but the last ones, as `torch.chunk` cuts."""
    length = -(-size // n_parts)
    begin = min(size, part * length)
    return begin, min(size, begin + length) - begin


def local_config(model: ModelConfig, layout: Layout, at: Coordinate) -> ModelConfig:
    """The shape of the model that a rank of `tensor` computes: the same with fewer heads, hidden units and tokens."""
    return model.model_copy(
        update={
            "n_heads": model.n_heads // layout.tensor,
            "n_kv_heads": model.n_kv_heads // layout.tensor,
            "head_dim": model.head_width,
            "d_ff": model.d_ff // layout.tensor,
            "vocab_size": cut(model.vocab_size, layout.tensor, at.tensor)[1],
        }
    )


def stage_layers(n_layers: int, layout: Layout, stage: int) -> range:
    """The layers of a pipeline stage, as equally many in each as can be; the first have more."""
    least, more = divmod(n_layers, layout.n_stages)
    begin = stage * least + min(stage, more)
    return range(begin, begin + least + (stage < more))
