"""A decoder in the midst of several texts: it has read them, and takes one more token of each at a time.

The texts are read as the packed segments of one row, as in training. The arithmetic is that of `Decoder.forward`,
with all keys and values kept.

Shapes: B rows, N packed positions of all rows, M packed positions of all rows of the encoder, P positions of the
longest row, D model width, H query heads, E head width, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bushcraft.model.attention import Mask, Segments, cross_mask, prefix_mask
from bushcraft.model.cache import Cache, Places, attend_to_cache
from bushcraft.model.layers import Angles, Attention, rotary_angles
from bushcraft.model.packed import Packed
from bushcraft.model.precision import product
from bushcraft.model.transformer import Block, Decoder


@dataclass(frozen=True)
class Encoded:
    """What an encoder read, and its hidden states, (1, M, D)."""

    packed: Packed
    hidden: Tensor


@dataclass
class Decoding:
    """The keys and values of all that a decoder has read."""

    decoder: Decoder
    places: Places
    end: int
    """Places that are taken."""
    angles: Angles
    """Of each position, (P, 1, E/2)."""
    caches: list[Cache] = field(default_factory=list)
    """Of each layer's attention to the decoder's own positions."""
    cross_caches: list[Cache] = field(default_factory=list)
    """Of each layer's attention to the encoder; none in a decoder without one."""
    encoder_places: Places | None = None

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.places = self.places.of_rows(rows)
        self.encoder_places = self.encoder_places and self.encoder_places.of_rows(rows)
        for cache in (*self.caches, *self.cross_caches):
            cache.keep_rows(rows)


def begin(decoder: Decoder, packed: Packed, n_more: int, encoded: Encoded | None = None) -> tuple[Decoding, Tensor]:
    """Read the segments of one row, each of which is to grow by at most `n_more` tokens; and the logits (B, V) after.

    A decoder that crosses takes what the encoder has for each segment.
    """
    config, device = decoder.config, packed.tokens.device
    places = Places.of(packed.segments.length.to(device), n_more)
    positions_P = torch.arange(places.room, device=device)
    table = rotary_angles(positions_P, config.head_width, config.rope_theta)
    decoding = Decoding(decoder, places, places.end, table)
    if encoded is not None:
        decoding.encoder_places = Places.of(encoded.packed.segments.length.to(device), 0)
    angles = _at(table, packed.segments.positions(*packed.tokens.shape).to(device))
    x_1ND = decoder.embedding(packed.tokens)
    for layer, mask in zip(_blocks(decoder), _masks(decoder, packed.segments), strict=True):
        x_1ND = x_1ND + _read_own(decoding, layer, x_1ND, mask, angles)
        if encoded is not None:
            x_1ND = x_1ND + _read_encoder(decoding, layer, x_1ND, packed.segments, encoded)
        x_1ND = layer.add_mlp(x_1ND)
    last_B = packed.segments.length.cumsum(0) - 1
    return decoding, _logits(decoder, x_1ND[0, last_B.to(device)])


def next_logits(decoding: Decoding, tokens_B: Tensor) -> Tensor:
    """Logits (B, V) after one more token in each row."""
    decoder, places = decoding.decoder, decoding.places
    place = decoding.end
    decoding.end += 1
    angles = _at(decoding.angles, place - places.first)
    x_BD = decoder.embedding(tokens_B)
    for index, (layer, cache) in enumerate(zip(_blocks(decoder), decoding.caches, strict=True)):
        y_BD = layer.attention_norm(x_BD)
        cache.put(*layer.attention.keys_and_values(y_BD, angles), place)
        q_BHE = layer.attention.queries(y_BD, angles)
        window = decoder.config.layer_window(index)
        seen = slice(0 if window is None else max(0, decoding.end - window), decoding.end)
        x_BD = x_BD + layer.attention_post_norm(_attend(layer.attention, q_BHE, cache, seen, places))
        if layer.cross is not None:
            assert decoding.encoder_places is not None
            q_BHE = layer.cross.queries(layer.cross_norm(x_BD), None)
            read_BD = _attend(layer.cross, q_BHE, decoding.cross_caches[index], slice(None), decoding.encoder_places)
            x_BD = x_BD + layer.cross_post_norm(read_BD)
        x_BD = layer.add_mlp(x_BD)
    return _logits(decoder, x_BD)


def _read_own(decoding: Decoding, layer: Block, x_1ND: Tensor, mask: Mask, angles: Angles) -> Tensor:
    """What a layer's attention adds, (1, N, D); its keys and values are kept."""
    y_1ND = layer.attention_norm(x_1ND)
    k, v = layer.attention.keys_and_values(y_1ND, angles)
    decoding.caches.append(Cache.of(k[0], v[0], decoding.places))
    added: Tensor = layer.attention_post_norm(
        layer.attention.attend(layer.attention.queries(y_1ND, angles), k, v, mask)
    )
    return added


def _read_encoder(decoding: Decoding, layer: Block, x_1ND: Tensor, segments: Segments, encoded: Encoded) -> Tensor:
    """What a layer's attention to the encoder adds, (1, N, D); its keys and values are made here once."""
    assert layer.cross is not None
    assert decoding.encoder_places is not None
    k, v = layer.cross.keys_and_values(encoded.hidden, None)
    decoding.cross_caches.append(Cache.of(k[0], v[0], decoding.encoder_places))
    q = layer.cross.queries(layer.cross_norm(x_1ND), None)
    added: Tensor = layer.cross_post_norm(layer.cross.attend(q, k, v, cross_mask(segments, encoded.packed.segments)))
    return added


def _attend(attention: Attention, q_BHE: Tensor, cache: Cache, seen: slice, places: Places) -> Tensor:
    """What one query a row reads, (B, D)."""
    read = attend_to_cache(q_BHE, cache, seen, places.hidden, attention.scores.scale, attention.scores.soft_cap)
    added: Tensor = attention.out(read)
    return added


def _logits(decoder: Decoder, x_BD: Tensor) -> Tensor:
    logits_BV, cap = product(decoder.norm(x_BD), decoder.unembedding_VD), decoder.config.logit_soft_cap
    return logits_BV if cap is None else logits_BV.div_(cap).tanh_().mul_(cap)


def _blocks(decoder: Decoder) -> Iterator[Block]:
    for layer in decoder.layers:
        assert isinstance(layer, Block)
        yield layer


def _masks(decoder: Decoder, segments: Segments) -> list[Mask]:
    whole, config = prefix_mask(segments), decoder.config
    return [dataclasses.replace(whole, window=config.layer_window(layer)) for layer in range(config.n_layers)]


def _at(table: Angles, positions: Tensor) -> Angles:
    cos, sin = table
    return cos[positions], sin[positions]
