"""The optimizer of a model over groups of its parameters, and its state as named tensors.

AdamW: matrices decay, vectors (norms) do not. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101). Under "muon" the
matrices inside of the model follow Muon, and what is left (embeddings, vectors) AdamW.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bushcraft.train.muon import muon_step
from bushcraft.train.recipe import OptimizerConfig

ADAMW_STATE = ("exp_avg", "exp_avg_sq")
MUON_STATE = "momentum"


class Optimizer:
    """The optimizer of one model: set the rate and step, read and write the state by parameter name."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        parameters = dict(model.named_parameters())
        self._muon = {n: p for n, p in parameters.items() if config.name == "muon" and _is_inner_matrix(n, p)}
        self._momentum: dict[str, Tensor] = {}
        self._adamw_parameters = {n: p for n, p in parameters.items() if n not in self._muon}
        others = self._adamw_parameters.values()
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
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
        if self._muon:
            if not self._momentum:
                self._momentum = {n: torch.zeros_like(p) for n, p in self._muon.items()}
            config, parameters, buffers = self._config, list(self._muon.values()), list(self._momentum.values())
            muon_step(parameters, buffers, learning_rate, config.weight_decay, config.momentum)

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's averages as "exp_avg/NAME" and "exp_avg_sq/NAME", Muon's as "momentum/NAME"; none before a step."""
        state = self._adamw.state
        averages = {
            f"{kind}/{n}": state[p][kind]
            for n, p in self._adamw_parameters.items()
            if p in state
            for kind in ADAMW_STATE
        }
        return averages | {f"{MUON_STATE}/{n}": buffer for n, buffer in self._momentum.items()}

    def scalars(self) -> dict[str, Any]:
        """How many steps were made, which AdamW's bias correction needs."""
        steps = {float(state["step"]) for state in self._adamw.state.values()}
        assert len(steps) <= 1
        return {"step": steps.pop()} if steps else {}

    def prepare(self, scalars: dict[str, Any]) -> dict[str, Tensor]:
        """Make the state of that many steps, and give its tensors by name, to be filled."""
        for parameter in self._adamw_parameters.values():
            self._adamw.state[parameter] = {
                "step": torch.tensor(scalars["step"], dtype=torch.float32),
                **{kind: torch.zeros_like(parameter) for kind in ADAMW_STATE},
            }
        self._momentum = {n: torch.zeros_like(p) for n, p in self._muon.items()}
        return self.tensors()


def _is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Embeddings are tables of vectors: their rows are not mixed by any input, so there is nothing to make equal."""
    return parameter.ndim == 2 and not {"embedding", "unembedding"} & set(name.split("."))
