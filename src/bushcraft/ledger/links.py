"""What a ledger's root refers to: its sealed segments."""

from typing import Any

from bushcraft.store.depot import Depot
from bushcraft.store.links import Links, register


def ledger_links(document: dict[str, Any], _: Depot) -> Links:
    """The segments, which are lines of events."""
    return Links(data=[segment["object"] for segment in document["segments"]])


register("bushcraft-ledger", ledger_links)
