"""Which checkpoints of a run are kept: a pure function of the policy. What it lets go, only `store gc` removes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

NEWEST_VERIFIED = 2
"""Never fewer: if the newest turns out to be damaged, there is one to go back to."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """What the policy looks at."""

    number: int
    """Of the reference."""
    position: int
    """Sequences consumed."""
    verified: bool = True
    """Whether every byte was found to be what it should be."""
    heldout_loss: float | None = None
    """Nats a token; None if it was not evaluated."""


@dataclass(frozen=True)
class RetentionPolicy:
    """A checkpoint is kept if any of these wants it."""

    last: int = NEWEST_VERIFIED
    """The newest ones."""
    every_positions: int | None = None
    """The first one at or after each multiple of so many sequences."""
    milestones: frozenset[int] = frozenset()
    """These numbers."""
    best: int = 0
    """Those of the lowest held-out loss; of equal ones the newer."""


def kept(checkpoints: Collection[SavedCheckpoint], policy: RetentionPolicy) -> set[int]:
    """The numbers to keep; among them always the newest `NEWEST_VERIFIED` that are verified, if there are so many."""
    newest = sorted(checkpoints, key=lambda checkpoint: checkpoint.number, reverse=True)
    verified = [checkpoint for checkpoint in newest if checkpoint.verified]
    judged = [(c.heldout_loss, -c.number) for c in verified if c.heldout_loss is not None]
    return {
        *(checkpoint.number for checkpoint in newest[: policy.last]),
        *(checkpoint.number for checkpoint in verified[:NEWEST_VERIFIED]),
        *(checkpoint.number for checkpoint in newest if checkpoint.number in policy.milestones),
        *(-number for _, number in sorted(judged)[: policy.best]),
        *(_first_of_each(newest[::-1], policy.every_positions) if policy.every_positions else ()),
    }


def _first_of_each(oldest: Sequence[SavedCheckpoint], every: int) -> set[int]:
    """By interval, the verified ones before those that are not."""
    first: dict[int, int] = {}
    for checkpoint in sorted(oldest, key=lambda checkpoint: (not checkpoint.verified, checkpoint.position)):
        first.setdefault(checkpoint.position // every, checkpoint.number)
    return set(first.values())
