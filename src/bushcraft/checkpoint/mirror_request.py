"""What the ranks tell a node's mirror (`mirror.py`) when a save has been concluded."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InMemory:
    """A checkpoint as the first node's memory depot has published it."""

    number: int
    manifest: str
    sizes: Mapping[str, int]
    """Object → bytes: the manifest, and what of the ledger is not stored yet."""


@dataclass(frozen=True)
class MirrorRequest:
    """A save has been concluded: have its manifest in this node's memory too, and the objects of the node before."""

    run: str
    position: int
    checkpoint: InMemory
    first: str
    """HOST:PORT of the first node's server."""
    partner: str
    """That of the node before this one."""
    own: Mapping[str, int]
    """Object → bytes: what the ranks of this node have written to its memory."""
    partners: Mapping[str, int]
    """The same of the partner."""
