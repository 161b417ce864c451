"""AdamW over groups of parameters, and its state as named tensors.

Matrices decay, vectors (norms) do not. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

from typing import Any

import torch
from torch import Tensor, nn

from bushcraft.train.recipe import OptimizerConfig

STATE = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """The optimizer of one model: set the rate and step, read and write the state by parameter name."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._parameters = dict(model.named_parameters())
        matrices = [p for p in self._parameters.values() if p.ndim >= 2]
        vectors = [p for p in self._parameters.values() if p.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True,  # one pass over memory a parameter
        )

    def step(self, learning_rate: float) -> None:
        """One update from the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()

    def tensors(self) -> dict[str, Tensor]:
        """The averages as "exp_avg/NAME" and "exp_avg_sq/NAME"; empty before the first step."""
        state = self._adamw.state
        return {f"{kind}/{n}": state[p][kind] for n, p in self._parameters.items() if p in state for kind in STATE}

    def scalars(self) -> dict[str, Any]:
        """How many steps were made, which AdamW's bias correction needs."""
        steps = {float(state["step"]) for state in self._adamw.state.values()}
        assert len(steps) <= 1
        return {"step": steps.pop()} if steps else {}

    def prepare(self, scalars: dict[str, Any]) -> dict[str, Tensor]:
        """Make the state of that many steps, and give its tensors by name, to be filled."""
        for parameter in self._parameters.values():
            self._adamw.state[parameter] = {
                "step": torch.tensor(scalars["step"], dtype=torch.float32),
                **{kind: torch.zeros_like(parameter) for kind in STATE},
            }
        return self.tensors()
