"""All weights on the first rank, in a plain model: for what is done there alone, such as generating text."""

import torch
import torch.distributed as dist

from bushcraft.model.transformer import Model, build_model
from bushcraft.parallel.box import Box
from bushcraft.parallel.parallel_model import ParallelModel
from bushcraft.parallel.ranks import Ranks


def whole_model(parallel: ParallelModel, ranks: Ranks) -> Model | None:
    """On the first rank the model itself where it is whole, else a copy with all weights; None on the others.

    All ranks call it at once. Each weight is sent by the ranks that would save it.
    """
    if parallel.mesh is None:
        return parallel.stages[0].model
    mine = {name: weight.box for name, weight in parallel.weights.by_name.items() if weight.writes}
    boxes = ranks.gathered(mine)
    model = build_model(parallel.config) if ranks.is_first else None
    targets = {name: p.data for name, p in model.named_parameters()} if model else {}
    for name in sorted({name for of_rank in boxes for name in of_rank}):
        for rank, of_rank in enumerate(boxes):
            if name in of_rank and not of_rank[name].is_empty:
                _move(parallel, name, of_rank[name], rank, ranks.rank, targets.get(name))
    return model


def _move(parallel: ParallelModel, name: str, box: Box, sender: int, rank: int, target: torch.Tensor | None) -> None:
    if rank == sender:
        part = parallel.weights.by_name[name].held.data.cpu().contiguous()
        if target is None:
            dist.send(part, 0)
    elif target is not None:
        part = torch.empty(box.shape)
        dist.recv(part, sender)
    if target is not None:
        target[box.within(Box.whole(tuple(target.shape)))] = part
