"""The receipt: a rolling digest of what a run has consumed, the same whatever machine consumed it.

receipt(k) = BLAKE3(receipt(k-1) ‖ first position ‖ last position + 1 ‖ digests of the sequences), from 32 zero
bytes on. Each sequence has a digest of its own, so that ranks can each read some of them.
Two runs with equal receipts at a position have read the same tokens in the same order up to it.
"""

from blake3 import blake3

from bushcraft.errors import RunError
from bushcraft.ledger.events import Event

EMPTY = "0" * 64


def extend(receipt: str, begin: int, end: int, digests: bytes) -> str:
    """The receipt after a step that consumed positions [begin, end), by `Rows.digests` of all of them; hexadecimal."""
    place = begin.to_bytes(8, "little") + end.to_bytes(8, "little")
    return blake3(bytes.fromhex(receipt) + place + digests).hexdigest()


def receipts(events: list[Event]) -> dict[int, str]:
    """Position → receipt of the last step that ended there; a change makes what lay ahead of it void."""
    found: dict[int, str] = {}
    for event in events:
        if event.type == "step":
            found[event.position] = event.data["receipt"]
        elif event.type == "change":
            found = {position: receipt for position, receipt in found.items() if position <= event.position}
    return found


def check_replay(position: int, receipt: str, earlier: dict[int, str]) -> None:
    """A step that is made again must consume what it consumed before the crash. Errors: `RunError`."""
    if position in earlier and earlier[position] != receipt:
        raise RunError(
            f"the step that ends at position {position} read other data than before the restart",
            "The data set or the ledger was altered: `bushcraft data verify` and `bushcraft run events` tell which",
        )
