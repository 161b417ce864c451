"""One line of a ledger: a typed event, with its place in the run, its clocks and a checksum.

A line is a JSON object whose last key `check` is the xxh3-64 of the line before it, so that a flipped byte
or a torn line is noticed. Keys: `sequence type wall mono generation node rank position phases … check`.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import xxhash

VERSION = 1

EventType = Literal[
    "run",  # first line: format version, recipe, data set roots, resolved values
    "start",  # a process begins a generation: from which checkpoint and position
    "step",  # one optimizer step: loss, receipt
    "change",  # from this position on: weights, batch size, a skipped range, another recipe field
    "checkpoint",  # a manifest was published, or one was found unusable
    "evaluation",
    "interrupted",  # asked to stop; a checkpoint was written
    "finished",
]

Phase = Literal["import", "rendezvous", "init", "load", "compile", "step", "data", "save", "evaluate", "drain"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Event:
    """Something that happened. `phases` says how the seconds since the event before it were spent."""

    type: EventType
    sequence: int
    """Number of the line in its ledger, from 0."""
    wall: float
    """Seconds since 1970."""
    mono: float
    """Seconds on a clock that never steps; comparable only inside one generation."""
    generation: int
    """How often the run was started before."""
    node: str
    rank: int
    position: int
    """Sequences consumed."""
    phases: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """The event as it stands in the file, with its newline."""
        body = json.dumps({**vars(self)}, separators=(",", ":"), allow_nan=False).encode()
        return body[:-1] + b',"check":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}\n'

    @classmethod
    def from_line(cls, line: bytes) -> "Event":
        """The event of one line. Errors: ValueError if the line is not exactly what was written."""
        body, found, check = line.rstrip(b"\n").rpartition(b',"check":"')
        body += b"}"
        if not found or check != xxhash.xxh3_64_hexdigest(body).encode() + b'"}':
            raise ValueError("the checksum does not fit")
        return cls(**json.loads(body))
