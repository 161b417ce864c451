"""The checkpoints of a run while it trains: at most one is in hand, and all ranks agree on what became of it.

Each rank copies its state and trains on; its saver's process writes. When all have written, the first rank has the
checkpoint published. A save that fails is said and written to the ledger, and the run goes on, as long as the newest
durable checkpoint is not older than the recipe allows.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.checkpoint.saver import Saver
from bushcraft.checkpoint.saver_process import Published, PublishRequest, Written
from bushcraft.checkpoint.tensors import merge_entries
from bushcraft.errors import BushcraftError, CheckpointError
from bushcraft.ledger.ledger import Ledger, Sealed
from bushcraft.parallel.box import Part
from bushcraft.parallel.ranks import Ranks
from bushcraft.train.ring import Ring

Say = Callable[[str], None]


@dataclass(frozen=True)
class Saved:
    """A durable checkpoint of this process."""

    name: str
    position: int


@dataclass(frozen=True)
class _InHand:
    position: int
    step: int
    sealed: Sealed
    request: PublishRequest
    began: float
    written: tuple[Written, ...] = ()
    """By rank, once all have written: then the first one publishes."""


class Saving:
    """Begins saves, follows them at step boundaries, and waits for the last one."""

    def __init__(
        self,
        saver: Saver,
        ranks: Ranks,
        ledger: Ledger,
        say: Say,
        max_age_minutes: float,
        newest: Saved | None,
        ring: Ring | None = None,
    ) -> None:
        self._saver, self._ranks, self._ledger, self._say = saver, ranks, ledger, say
        self._ring = ring
        self._max_age = 60 * max_age_minutes
        self._not_durable_since: float | None = None
        """When the first save began after the newest durable checkpoint."""
        self._in_hand: _InHand | None = None
        self._failure: BushcraftError | None = None
        """Why the last save failed, if it did."""
        self._newest_is_ours = False
        self.newest = newest
        """The newest durable checkpoint, the same on all ranks."""
        self.seconds = 0.0
        """What the last save took from its begin to its publication."""

    @property
    def in_hand(self) -> bool:
        """Whether a save has begun and not ended."""
        return self._in_hand is not None

    def is_durable(self, position: int) -> bool:
        """Whether the newest durable checkpoint is of this position."""
        return self.newest is not None and self.newest.position == position

    def check_durable(self, position: int) -> None:
        """Errors: why there is no durable checkpoint of this position."""
        if not self.is_durable(position):
            assert self._failure is not None
            raise self._failure

    @property
    def stall(self) -> float:
        """Seconds for which the last save stopped the steps of this rank."""
        return self._saver.stall

    def prepare(self, parts: Mapping[str, Part]) -> None:
        """Reserve what saves will need."""
        self._saver.prepare(parts)

    def begin(self, manifest: CheckpointManifest, parts: Mapping[str, Part]) -> None:
        """Copy the state of this position; `manifest` is without tensors and ledger."""
        assert self._in_hand is None
        sealed = self._ledger.sealed()
        manifest = replace(manifest, ledger=sealed.root)
        request = PublishRequest(manifest, manifest, sealed.objects)
        self._in_hand = _InHand(manifest.position, manifest.step, sealed, request, began := time.monotonic())
        self._not_durable_since = self._not_durable_since or began
        self._saver.begin(
            parts,
            self.newest.name if self.newest else None,
            self._newest_is_ours,
            request if self._ranks.world_size == 1 else None,
        )

    def busy(self, seconds: float = 0.0) -> bool:
        """Whether this rank's process has something to do; waits for its end for so long."""
        return self._in_hand is not None and self._saver.outcome(seconds) is None

    def too_old(self) -> bool:
        """Whether saves have been tried for longer than the recipe allows, and none became durable."""
        return self._not_durable_since is not None and time.monotonic() - self._not_durable_since > self._max_age

    def advance(self, busy: bool, too_old: bool) -> None:
        """Go on with the save in hand; `busy` and `too_old` are those of any rank, so that all do the same.

        Errors: `CheckpointError` when the newest durable checkpoint is too old.
        """
        if self._in_hand is not None and not busy:
            if self._in_hand.written:
                self._conclude(self._ranks.first(self._published))
            else:
                self._all_have_written(self._ranks.gathered(self._saver.outcome()))
        if too_old:
            raise CheckpointError(
                f"no checkpoint became durable for {self._max_age / 60:g} minutes (checkpoint.max_age_minutes)",
                "See why above; the same command goes on from the newest checkpoint when the store can be written",
            )

    def finish(self) -> None:
        """Wait for the save in hand. Errors: `CheckpointError` when the newest durable checkpoint is too old."""
        while self._in_hand is not None:
            found = self._ranks.gathered((self.busy(seconds=0.2), self.too_old()))
            self.advance(any(busy for busy, _ in found), any(old for _, old in found))

    def close(self, ended_well: bool) -> None:
        """Let the saver's process end; after a failure the copies in memory stay for the next start."""
        self._saver.close()
        if ended_well:
            self._saver.release()

    def _all_have_written(self, outcomes: list[Written | Published | None]) -> None:
        assert self._in_hand is not None
        ended = next((outcome for outcome in outcomes if isinstance(outcome, Published)), None)
        if ended is not None:  # a single rank has published, or a saver has died
            self._conclude(ended)
            return
        written = tuple(outcome for outcome in outcomes if isinstance(outcome, Written))
        for note in dict.fromkeys(note for of_rank in written for note in of_rank.notes):
            self._say(note)
        self._in_hand = replace(self._in_hand, written=written)
        try:
            self._ranks.first(lambda: self._publish(written))
        except BushcraftError as error:
            self._conclude(Published(None, error))

    def _publish(self, written: tuple[Written, ...]) -> None:
        assert self._in_hand is not None
        request = self._in_hand.request
        self._saver.publish(
            replace(
                request,
                manifest=replace(request.manifest, tensors=merge_entries([of_rank.entries for of_rank in written])),
                in_memory=replace(request.in_memory, tensors=merge_entries([of_rank.in_memory for of_rank in written])),
                failure=next((of_rank.failure for of_rank in written if of_rank.failure), None),
            )
        )

    def _published(self) -> Published:
        outcome = self._saver.outcome()
        assert isinstance(outcome, Published)
        return outcome

    def _conclude(self, published: Published) -> None:
        in_hand, self._in_hand = self._in_hand, None
        assert in_hand is not None
        self._failure = published.failure
        self.seconds = time.monotonic() - in_hand.began
        if self._ring is not None and published.in_memory is not None:
            self._ring.mirror(self._saver, in_hand.request.manifest, in_hand.written, published.in_memory)
        if published.name is None:
            reason = published.failure.message if published.failure else "nobody knows why"
            self._ledger.append("checkpoint", in_hand.position, failed=reason, step=in_hand.step)
            self._say(f"the checkpoint of position {in_hand.position:,} could not be saved: {reason}")
            self._newest_is_ours = False
            return
        self._ledger.confirm(in_hand.sealed)
        self._ledger.append(
            "checkpoint",
            in_hand.position,
            durable=True,
            manifest=published.name,
            step=in_hand.step,
            seconds=round(self.seconds, 3),
            stall=round(self.stall, 4),
        )
        self._not_durable_since = None
        self.newest, self._newest_is_ours = Saved(published.name, in_hand.position), True
