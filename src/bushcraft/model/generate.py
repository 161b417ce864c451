"""Tokens one by one, for many prompts at once.

Shapes: B rows, N steps, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from bushcraft.model.attention import Segments
from bushcraft.model.decoding import Decoding, Encoded, begin, next_logits
from bushcraft.model.packed import Packed
from bushcraft.model.sampling import draw, uniforms
from bushcraft.model.transformer import Decoder, Model


@torch.inference_mode()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    temperature: float,
    top_p: float,
    seeds: Sequence[int],
    stops: Collection[int] = (),
    are_prefixes: bool | Sequence[bool] = False,
    start: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each prompt, at most `n_tokens` times; None for a prompt that has ended.

    A prompt has at least one token; its text ends with the first token that is in `stops`. A decoder goes on with the
    prompt, which it reads both ways if it is a prefix (`are_prefixes`: of all, or of each). An encoder-decoder reads it
    in the encoder, and its decoder begins with the token `start`. Temperature and `top_p` are those of `sampling.draw`.
    What a prompt gets follows from itself and its seed, whatever stands beside it.
    """
    uniforms_BN = uniforms(seeds, n_tokens).to(model.unembedding_VD.device)
    prefixes = [are_prefixes] * len(prompts) if isinstance(are_prefixes, bool) else are_prefixes
    decoding, logits_BV = _read(model, prompts, n_tokens, prefixes, start)
    prompt_of_row, going = list(range(len(prompts))), set(range(len(prompts)))
    for step in range(n_tokens):
        tokens_B = draw(logits_BV, temperature, top_p, uniforms_BN[:, step])
        drawn = dict(zip(prompt_of_row, tokens_B.tolist(), strict=True))
        yield [drawn[prompt] if prompt in going else None for prompt in range(len(prompts))]
        going -= {prompt for prompt, token in drawn.items() if token in stops}
        if not going or step == n_tokens - 1:
            return
        if 2 * len(going) <= len(prompt_of_row):  # not at each end, so that the copies cost less than the steps
            rows = [row for row, prompt in enumerate(prompt_of_row) if prompt in going]
            prompt_of_row = [prompt_of_row[row] for row in rows]
            decoding.keep_rows(kept := torch.tensor(rows, device=tokens_B.device))
            tokens_B, uniforms_BN = tokens_B[kept], uniforms_BN[kept]
        logits_BV = next_logits(decoding, tokens_B)


def _read(
    model: Model, prompts: Sequence[Sequence[int]], n_tokens: int, are_prefixes: Sequence[bool], start: int | None
) -> tuple[Decoding, Tensor]:
    """The prompts as the model reads them, with room for `n_tokens` more; logits (B, V) of the first of these."""
    device = model.unembedding_VD.device
    packed = _packed(prompts, are_prefixes, device)
    if isinstance(model, Decoder):
        return begin(model, packed, n_tokens)
    assert start is not None, "the decoder of an encoder-decoder has to begin with some token"
    beginnings = _packed([[start]] * len(prompts), [False] * len(prompts), device)
    return begin(model.decoder, beginnings, n_tokens, Encoded(packed, model.encode(packed)))


def _packed(rows: Sequence[Sequence[int]], are_prefixes: Sequence[bool], device: torch.device) -> Packed:
    """One row of all of them, a segment each."""
    length = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    zeros = torch.zeros_like(length)
    start = (length.cumsum(0) - length).int()
    segments = Segments(row=zeros, start=start, prefix_length=length * torch.tensor(are_prefixes), length=length)
    return Packed(torch.tensor([[token for row in rows for token in row]], device=device), segments)
