"""The optimizer of a model over groups of its parameters, and its state as named tensors.

AdamW: matrices decay, vectors (norms) do not. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101). Under "muon" the
matrices inside of the model follow Muon, and what is left (embeddings, vectors) AdamW.
"""

from typing import Any

import torch
from torch import Tensor

from bushcraft.parallel.box import Part
from bushcraft.parallel.weights import Weight, Weights
from bushcraft.train.muon import muon_step
from bushcraft.train.recipe import OptimizerConfig

ADAMW_STATE = ("exp_avg", "exp_avg_sq")
MUON_STATE = "momentum"


class Optimizer:
    """The optimizer of what a rank holds of a model: set the rate and step, read and write the state by name."""

    def __init__(self, weights: Weights, config: OptimizerConfig) -> None:
        self._config, self._mesh = config, weights.mesh
        held = weights.by_name
        self._muon = {n: w for n, w in held.items() if config.name == "muon" and _is_inner_matrix(w)}
        self._momentum: dict[str, Tensor] = {}
        self._others = {n: w for n, w in held.items() if n not in self._muon}
        matrices: dict[str, Any] = {"params": [w.held for w in self._others.values() if len(w.shape) >= 2]}
        vectors = {"params": [w.held for w in self._others.values() if len(w.shape) < 2], "weight_decay": 0.0}
        self._adamw = torch.optim.AdamW(
            [matrices, vectors],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over memory a parameter
        )

    def step(self, learning_rate: float) -> None:
        """One update from the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        if self._muon:
            if not self._momentum:
                self._momentum = {n: torch.zeros_like(w.held.data) for n, w in self._muon.items()}
            config, weights, buffers = self._config, list(self._muon.values()), list(self._momentum.values())
            muon_step(weights, buffers, self._mesh, learning_rate, config.weight_decay, config.momentum)

    def parts(self) -> dict[str, Part]:
        """AdamW's averages as "exp_avg/NAME" and "exp_avg_sq/NAME", Muon's as "momentum/NAME"; none before a step."""
        state = self._adamw.state
        averages = {
            f"{kind}/{n}": w.part(state[w.held][kind])
            for n, w in self._others.items()
            if w.held in state
            for kind in ADAMW_STATE
        }
        return averages | {f"{MUON_STATE}/{n}": self._muon[n].part(buffer) for n, buffer in self._momentum.items()}

    def scalars(self) -> dict[str, Any]:
        """How many steps were made, which AdamW's bias correction needs."""
        steps = {float(state["step"]) for state in self._adamw.state.values()}
        assert len(steps) <= 1
        return {"step": steps.pop()} if steps else {}

    def prepare(self, scalars: dict[str, Any]) -> dict[str, Part]:
        """Make the state of that many steps, and give its tensors by name, to be filled."""
        for weight in self._others.values():
            self._adamw.state[weight.held] = {
                "step": torch.tensor(scalars["step"], dtype=torch.float32, device=weight.held.device),
                **{kind: torch.zeros_like(weight.held.data) for kind in ADAMW_STATE},
            }
        self._momentum = {n: torch.zeros_like(w.held.data) for n, w in self._muon.items()}
        return self.parts()


def _is_inner_matrix(weight: Weight) -> bool:
    """Embeddings are tables of vectors: their rows are not mixed by any input, so there is nothing to make equal."""
    return len(weight.shape) == 2 and not {"embedding", "unembedding"} & set(weight.name.split("."))
