"""Who of a cluster's nodes keeps which piece of which object.

Every node finds the same answer from the list of addresses alone. When a node leaves, only its pieces move, and they
spread over all others. Source: Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates"
(highest random weight).
"""

from collections.abc import Iterable

import xxhash

BLOCK = 4 * 1024 * 1024
"""Bytes; what is larger is kept and asked for in pieces that end at multiples of this."""


def pieces(begin: int, end: int) -> list[tuple[int, int]]:
    """The pieces (begin, end) of a range: itself if it is no larger than a block, else cut at multiples of `BLOCK`."""
    if end - begin <= BLOCK:
        return [(begin, end)]
    cuts = range(begin // BLOCK * BLOCK + BLOCK, end, BLOCK)
    return list(zip([begin, *cuts], [*cuts, end], strict=True))


def by_weight(addresses: Iterable[str], name: str, begin: int) -> list[str]:
    """The addresses in the order in which they answer for the piece of `name` that starts at `begin`; the owner first.

    The piece is known by its block, so that ranges that start in the same block have the same owner.
    """
    block = f"|{name}|{begin // BLOCK}".encode()
    return sorted(
        addresses, key=lambda address: (xxhash.xxh3_64_intdigest(address.encode() + block), address), reverse=True
    )
