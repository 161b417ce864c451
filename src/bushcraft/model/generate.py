"""Tokens one by one, with the keys and values of all earlier ones kept.

Shapes: B = 1 row, T positions so far, K key/value heads, E head width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bushcraft.model.layers import Attention, rotary_angles
from bushcraft.model.transformer import Decoder


@dataclass
class _Cache:
    """Keys and values of one layer, (1, T, K, E), with room for more."""

    keys: Tensor
    values: Tensor


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: list[int],
    n_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    prompt_is_prefix: bool = False,
) -> Iterator[int]:
    """Yield at most `n_tokens` tokens that go on with `prompt` (at least one token).

    Temperature 0 is greedy; else tokens are drawn from the smallest set of the most probable ones whose
    probabilities sum to `top_p` (Holtzman et al. 2020, arXiv:1904.09751). A prompt that is a prefix is read both ways.
    """
    assert prompt
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    room = (1, len(prompt) + n_tokens, config.n_kv_heads, config.head_width)
    caches = [_Cache(torch.empty(room), torch.empty(room)) for _ in model.layers]
    tokens, begin = prompt, 0
    for _ in range(n_tokens):
        logits_V = next_logits(model, tokens, begin, caches, prompt_is_prefix)
        begin += len(tokens)
        token = _draw(logits_V, temperature, top_p, generator)
        yield token
        tokens = [token]


def next_logits(
    model: Decoder, tokens: list[int], begin: int, caches: list[_Cache], prompt_is_prefix: bool = False
) -> Tensor:
    """Logits (V,) after `tokens`, which stand at positions from `begin` on; the caches grow by them."""
    config, end = model.config, begin + len(tokens)
    angles = rotary_angles(torch.arange(begin, end)[None], config.head_width, config.rope_theta)
    x_BSD = model.embedding(torch.tensor([tokens]))
    for layer, cache in zip(model.layers, caches, strict=True):
        attention: Attention = layer.attention  # type: ignore[assignment]
        y_BSD = layer.attention_norm(x_BSD)  # type: ignore[operator]
        q, (k, v) = attention.queries(y_BSD, angles), attention.keys_and_values(y_BSD, angles)
        cache.keys[:, begin:end], cache.values[:, begin:end] = k, v
        x_BSD = x_BSD + attention.out(
            _attend_to_cache(q, cache, begin, end, causal=begin == 0 and not prompt_is_prefix).flatten(-2)
        )
        x_BSD = x_BSD + layer.mlp(layer.mlp_norm(x_BSD))  # type: ignore[operator]
    h_D = model.norm(x_BSD[:, -1])[0]
    return model.unembedding_VD @ h_D  # type: ignore[no-any-return]


def _attend_to_cache(q_BSHE: Tensor, cache: _Cache, begin: int, end: int, causal: bool) -> Tensor:
    """New queries over all keys so far. A prompt begins the cache and may be causal; one new token sees all."""
    assert begin == 0 or q_BSHE.shape[1] == 1
    q, k, v = (x.transpose(1, 2) for x in (q_BSHE, cache.keys[:, :end], cache.values[:, :end]))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out.transpose(1, 2)


def _draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = (logits_V / temperature).softmax(0).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    kept = probabilities * ((before < top_p) | (torch.arange(len(before)) == 0))
    return int(order[torch.multinomial(kept, 1, generator=generator)])
