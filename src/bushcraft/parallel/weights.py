"""What a rank holds of the weights: plain tensors, each with its place in the global one.

An optimizer, a checkpoint and the norm of the gradient need no more, whatever cut the weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bushcraft.model.initialise import initialise_box
from bushcraft.parallel.box import Box, Part
from bushcraft.parallel.layout import Layout
from bushcraft.parallel.mesh import GRADIENT_AXES, Mesh
from bushcraft.parallel.rules import Axes, box, is_cut_by_tensor, parameter_axes


@dataclass(frozen=True)
class Weight:
    """One parameter as this rank holds it."""

    name: str
    axes: Axes
    shape: tuple[int, ...]
    """Of the whole parameter."""
    box: Box
    held: nn.Parameter
    """The elements of `box`, with their gradient after `Weights.take_gradients`; what an optimizer changes."""
    source: nn.Parameter
    """The parameter of the model, whose memory `held` shares."""
    counts: bool
    """Whether this rank answers for it where several ranks of one copy of the model have it: in the norm."""
    writes: bool
    """Whether it saves it, where several copies of the model have it too."""

    def part(self, tensor: Tensor) -> Part:
        """A tensor of the shape of `held`, such as an average of its gradient, with its place."""
        return Part(tensor, self.box, self.shape, self.writes)


class Weights:
    """All that a rank holds, by name."""

    def __init__(self, weights: Iterable[Weight], mesh: Mesh | None, tied: Iterable[str] = ()) -> None:
        """`tied` are the names of those that the first and the last stage of a pipeline both have."""
        self.tied = tuple(tied)
        self.by_name = {weight.name: weight for weight in sorted(weights, key=lambda weight: weight.name)}
        self.mesh = mesh

    def parts(self) -> dict[str, Part]:
        """The weights themselves."""
        return {name: weight.part(weight.held.data) for name, weight in self.by_name.items()}

    def initialise(self, seed: int) -> None:
        """Fill them from (seed, name, element), the same in every layout."""
        for weight in self.by_name.values():
            initialise_box(weight.held.data, seed, weight.name, weight.shape, weight.box.offset)

    def take_gradients(self) -> None:
        """After the last backward pass of a step: give `held` the gradients, summed over all ranks that have a term.

        FSDP has summed them over the ranks that read different positions; a rank of `tensor` has a term of those of
        the weights of which it has a copy, and two stages have one each of an embedding that both use.
        """
        for weight in self.by_name.values():
            gradient = weight.source.grad
            weight.held.grad = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        if self.mesh is not None and self.mesh.layout.tensor > 1:
            copies = [w for w in self.by_name.values() if not is_cut_by_tensor(w.axes)]
            _sum([w.held.grad for w in copies if w.held.grad is not None], self.mesh.group("tensor"))
        if self.mesh is not None and self.mesh.ends is not None:
            tied = [self.by_name[name] for name in self.tied if name in self.by_name]
            _sum([w.held.grad for w in tied if w.held.grad is not None], self.mesh.ends)

    def gradient_norm(self) -> float:
        """Of the whole gradient, the same on every rank."""
        gradients = [w.held.grad for w in self.by_name.values() if w.held.grad is not None and w.counts]
        norm = nn.utils.get_total_norm(gradients)
        if self.mesh is None:
            return float(norm)
        square = norm.double().square().to(self.mesh.device)
        dist.all_reduce(square, group=self.mesh.group(*GRADIENT_AXES))
        return float(square.sqrt())

    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their norm is at most `max_norm` (0: leave them); the norm before."""
        norm = self.gradient_norm()
        if max_norm:
            nn.utils.clip_grads_with_norm_(
                [w.held for w in self.by_name.values()], max_norm, torch.tensor(norm, dtype=torch.float32)
            )
        return norm

    def zero_gradients(self) -> None:
        """Before the next step."""
        for weight in self.by_name.values():
            weight.held.grad = None
            weight.source.grad = None


def whole_weights(model: nn.Module) -> Weights:
    """Of a model that is not cut."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return weights_of([model], shapes, parameter_axes(model), None, {})


def weights_of(
    models: Iterable[nn.Module],
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, Axes],
    mesh: Mesh | None,
    aliases: Mapping[str, str],
) -> Weights:
    """Of this rank's stages, each of which names its parameters as the whole model does.

    `shapes` and `axes` are those of the whole model; `aliases` are names that a stage gives to a copy of another's.
    """
    layout, at = (Layout(), Layout().coordinate(0)) if mesh is None else (mesh.layout, mesh.at)
    found = {}
    for model in models:
        for name, source in model.named_parameters():
            whole = aliases.get(name, name)
            held = source.to_local() if isinstance(source, DTensor) else source.data
            place = box(shapes[whole], axes[whole], layout, at)
            assert place.shape == tuple(held.shape), f"{name}: {place} holds {tuple(held.shape)}"
            counts = name not in aliases and (at.tensor == 0 or is_cut_by_tensor(axes[whole]))
            found[whole] = Weight(
                whole,
                axes[whole],
                shapes[whole],
                place,
                nn.Parameter(held) if isinstance(source, DTensor) else source,
                source,
                counts,
                counts and at.replicate == 0,
            )
    return Weights(found.values(), mesh, aliases.values())


def _sum(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """Each tensor becomes its sum over the ranks of the group, in one collective."""
    if not tensors:
        return
    joint = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(joint, group=group)
    for tensor, total in zip(tensors, torch.split(joint, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
