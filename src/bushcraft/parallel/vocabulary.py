"""The vocabulary cut over ranks: each knows some rows of the lookup, and has some logits of the softmax.

Source: Shoeybi et al. 2019 (arXiv:1909.08053), section 3.
Shapes: C positions of a chunk, V tokens of this rank's part.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from bushcraft.model.cross_entropy import Vocabulary


class VocabularyPart(Vocabulary):
    """Tokens [first, first + length) of the vocabulary; the ranks of `group` have the others."""

    def __init__(self, first: int, length: int, group: dist.ProcessGroup) -> None:
        self.first, self.length, self.group = first, length, group

    def log_sum_exp(self, lse_C: Tensor) -> Tensor:
        most_C = lse_C.clone()
        dist.all_reduce(most_C, dist.ReduceOp.MAX, self.group)
        total_C = (lse_C - most_C).exp_()
        dist.all_reduce(total_C, group=self.group)
        return total_C.log_().add_(most_C)

    def of_targets(self, logits_CV: Tensor, targets_C1: Tensor) -> Tensor:
        rows_C1, is_here_C1 = self.rows(targets_C1)
        found_C = logits_CV.gather(1, rows_C1).masked_fill_(~is_here_C1, 0.0)[:, 0].contiguous()
        dist.all_reduce(found_C, group=self.group)
        return found_C

    def add_at_targets(self, p_CV: Tensor, targets_C1: Tensor, values_C1: Tensor) -> Tensor:
        rows_C1, is_here_C1 = self.rows(targets_C1)
        return p_CV.scatter_add_(1, rows_C1, values_C1.masked_fill(~is_here_C1, 0.0))

    def rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token the row of this rank's part, any where it is not here; and whether it is."""
        rows = tokens - self.first
        is_here = (rows >= 0) & (rows < self.length)
        return torch.where(is_here, rows, 0), is_here
