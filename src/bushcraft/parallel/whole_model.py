"""All parts of some tensors on the first rank: for what is done there alone, such as generating text."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from bushcraft.model.transformer import Model, build_model
from bushcraft.parallel.box import Box, Part
from bushcraft.parallel.parallel_model import ParallelModel
from bushcraft.parallel.ranks import Ranks


def whole_model(parallel: ParallelModel, ranks: Ranks) -> Model | None:
    """On the first rank the model itself where it is whole, else a copy with all weights; None on the others.

    All ranks call it at once.
    """
    if parallel.mesh is None:
        return parallel.stages[0].model
    tensors = whole_tensors(parallel.weights.parts(), ranks)
    if not ranks.is_first:
        return None
    with torch.device("meta"):
        model = build_model(parallel.config)
    model.load_state_dict(tensors, assign=True)
    return model.to(parallel.device)


def whole_tensors(parts: Mapping[str, Part], ranks: Ranks) -> dict[str, Tensor]:
    """On the first rank every tensor of which some rank has a part; nothing on the others.

    All ranks call it at once. Each part is sent by the rank that would save it.
    """
    mine = {name: (part.box, part.global_shape, part.tensor.dtype) for name, part in parts.items() if part.writes}
    boxes = ranks.gathered(mine)
    found: dict[str, Tensor] = {}
    for name in sorted({name for of_rank in boxes for name in of_rank}):
        for sender, of_rank in enumerate(boxes):
            if name not in of_rank or of_rank[name][0].is_empty:
                continue
            box, shape, dtype = of_rank[name]
            if ranks.rank == sender:
                piece = parts[name].tensor.detach().cpu().contiguous()
                if not ranks.is_first:
                    dist.send(piece, 0)
            elif ranks.is_first:
                piece = torch.empty(box.shape, dtype=dtype)
                dist.recv(piece, sender)
            if ranks.is_first:
                whole = found.setdefault(name, torch.empty(shape, dtype=dtype))
                whole[box.within(Box.whole(shape))] = piece
    return found
