"""Optimizers: torch's own, over groups of parameters; their state as named tensors.

Matrices decay, vectors (norms) do not. Muon takes the matrices between the embeddings and the output, with
AdamW beside it for the rest (Jordan et al. 2024, "Muon: an optimizer for hidden layers").
"""

from typing import Any

import torch
from torch import Tensor, nn

from bushcraft.train.recipe import OptimizerConfig

EMBEDDINGS = ("embedding", "unembedding")


class Optimizer:
    """The optimizers of one model, driven as one: set the rate, step, read and write the state by name."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._names = dict(model.named_parameters())
        self._parts = _parts(self._names, config)

    def step(self, learning_rate: float) -> None:
        """One update; `learning_rate` is AdamW's, and Muon's after its own adjustment of scale."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state, "exp_avg/NAME" and so on; empty before the first step. Scalars stand in `scalars`."""
        return {f"{kind}/{name}": value for name, kind, value in self._state() if value.ndim}

    def scalars(self) -> dict[str, Any]:
        """The state's numbers (AdamW's step counts), one for all parameters."""
        return {kind: float(value) for _, kind, value in self._state() if not value.ndim}

    def prepare(self, scalars: dict[str, Any], kinds: set[str]) -> dict[str, Tensor]:
        """Make an empty state with these numbers, and give its tensors by name, to be filled."""
        for part in self._parts:
            for parameter in (p for group in part.param_groups for p in group["params"]):
                wanted = ("momentum_buffer",) if isinstance(part, torch.optim.Muon) else ("exp_avg", "exp_avg_sq")
                part.state[parameter] = {kind: torch.zeros_like(parameter) for kind in wanted if kind in kinds}
                if not isinstance(part, torch.optim.Muon):
                    part.state[parameter] |= {k: torch.tensor(v, dtype=torch.float32) for k, v in scalars.items()}
        return self.tensors()

    def _state(self) -> list[tuple[str, str, Tensor]]:
        states: dict[Tensor, dict[str, Tensor]] = {}
        for part in self._parts:
            states |= part.state
        return [(n, kind, value) for n, p in self._names.items() for kind, value in states.get(p, {}).items()]


def _parts(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    def is_hidden_matrix(name: str) -> bool:
        return parameters[name].ndim == 2 and not any(part in EMBEDDINGS for part in name.split("."))

    by_muon = [n for n in parameters if config.name == "muon" and is_hidden_matrix(n)]
    rest = [n for n in parameters if n not in set(by_muon)]
    groups = [
        {"params": [parameters[n] for n in rest if parameters[n].ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameters[n] for n in rest if parameters[n].ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    if not by_muon:
        return [adamw]
    muon = torch.optim.Muon(
        [parameters[n] for n in by_muon],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]
