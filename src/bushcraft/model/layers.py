"""The layers that encoders and decoders are made of.

Shapes: B rows, S positions, T positions attended to, D model width, H query heads, K key/value heads, E head width,
F hidden width.
`axes` names the logical axes of each layer's weights; layouts are tables over these names.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bushcraft.model.attention import Mask, attend
from bushcraft.model.config import ModelConfig
from bushcraft.model.fused import GeGLUFunction, ReLU2Function, RMSNormFunction, RotaryFunction, SwiGLUFunction
from bushcraft.model.precision import linear, operand_dtype

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, (B, S, 1, E/2) each."""


class Linear(nn.Module):
    """x @ weight.T without bias, in the present precision; `weight` is (out, in)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis, in fp32; the result as products will read it.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467).
    """

    axes: ClassVar = {"weight": ("embed",)}

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = RMSNormFunction.apply(x, self.weight, self.eps, operand_dtype(x))  # type: ignore[no-untyped-call]
        return out


def rotary_angles(positions_BS: Tensor, head_width: int, theta: float) -> Angles:
    """Angles position * theta**(-2i/E) for pair i (Su et al. 2021, arXiv:2104.09864); once a batch."""
    pair = torch.arange(head_width // 2, device=positions_BS.device, dtype=torch.float32)
    angles = positions_BS[..., None, None].float() * theta ** (-2 * pair / head_width)
    return angles.cos(), angles.sin()


class Scores(nn.Module):
    """Softmax attention of heads, which has no weights: a module, so that it can be given its heads in another way."""

    def __init__(self, scale: float | None, soft_cap: float | None) -> None:
        super().__init__()
        self.scale, self.soft_cap = scale, soft_cap

    def forward(self, q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask: Mask) -> Tensor:
        """(B, S, H, E)."""
        return attend(q_BSHE, k_BTKE, v_BTKE, mask, self.scale, self.soft_cap)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and normalised queries and keys.

    Source: Ainslie et al. 2023 (arXiv:2305.13245); Su et al. 2021; Dehghani et al. 2023, section 2.2.
    """

    axes: ClassVar = {
        "query": ("heads", "embed"),
        "key": ("kv", "embed"),
        "value": ("kv", "embed"),
        "out": ("embed", "heads"),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, e = config.d_model, config.head_width
        self.head_width = e
        self.scores = Scores(config.attention_scale, config.attention_soft_cap)
        self.query = Linear(d, config.n_heads * e)
        self.key = Linear(d, config.n_kv_heads * e)
        self.value = Linear(d, config.n_kv_heads * e)
        self.out = Linear(config.n_heads * e, d)
        self.query_norm = RMSNorm(e, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(e, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BSD: Tensor, mask: Mask, angles: Angles) -> Tensor:
        return self.attend(self.queries(x_BSD, angles), *self.keys_and_values(x_BSD, angles), mask)

    def queries(self, x_BSD: Tensor, angles: Angles | None) -> Tensor:
        """(B, S, H, E), normalised, and rotated where there are angles."""
        return self._rotate(self.query_norm(self._split(self.query(x_BSD))), angles)

    def keys_and_values(self, x_BTD: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        """(B, T, K, E) each; the keys are normalised, and rotated where there are angles."""
        return self._rotate(self.key_norm(self._split(self.key(x_BTD))), angles), self._split(self.value(x_BTD))

    def attend(self, q_BSHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask: Mask) -> Tensor:
        """What the layer adds to the residual stream, (B, S, D)."""
        out: Tensor = self.out(self.scores(q_BSHE, k_BTKE, v_BTKE, mask).flatten(-2))
        return out

    def _split(self, x_BSX: Tensor) -> Tensor:
        return x_BSX.view(*x_BSX.shape[:-1], -1, self.head_width)

    def _rotate(self, x: Tensor, angles: Angles | None) -> Tensor:
        if angles is None:
            return x
        out: Tensor = RotaryFunction.apply(x, *angles)  # type: ignore[no-untyped-call]
        return out


class CrossAttention(Attention):
    """Attention of the decoder to the encoder's output: the same layer without positions (Vaswani et al. 2017)."""

    def forward(self, x_BSD: Tensor, encoded_BTD: Tensor, mask: Mask) -> Tensor:  # type: ignore[override]
        return self.attend(self.queries(x_BSD, None), *self.keys_and_values(encoded_BTD, None), mask)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(relu(up(x))²).

    Source: Shazeer 2020 (arXiv:2002.05202); So et al. 2021 (arXiv:2109.08668).
    """

    axes: ClassVar = {"gate": ("mlp", "embed"), "up": ("mlp", "embed"), "down": ("embed", "mlp")}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        self.gate = None if config.mlp == "relu2" else Linear(config.d_model, config.d_ff)
        self.up = Linear(config.d_model, config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)

    def forward(self, x_BSD: Tensor) -> Tensor:
        if self.gate is None:
            h_BSF: Tensor = ReLU2Function.apply(self.up(x_BSD))  # type: ignore[no-untyped-call]
        else:
            function = SwiGLUFunction if self.kind == "swiglu" else GeGLUFunction
            h_BSF = function.apply(self.gate(x_BSD), self.up(x_BSD))  # type: ignore[no-untyped-call]
        out: Tensor = self.down(h_BSF)
        return out
