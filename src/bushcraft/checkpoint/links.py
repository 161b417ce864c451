"""What a checkpoint refers to: the objects of its tensors, and the ledger, code and data sets that it names.

Evaluations name the checkpoint that they judged, and need no reader of their own.
"""

from typing import Any

from bushcraft.store.depot import Depot
from bushcraft.store.links import Links, names_in, register


def checkpoint_links(document: dict[str, Any], _: Depot) -> Links:
    """The tensors' objects as data; every other name is followed."""
    tensors = {chunk["object"] for entry in document["tensors"].values() for chunk in entry["chunks"]}
    others = {document["ledger"], document["code"], *document["datasets"].values()}
    named = names_in({key: value for key, value in document.items() if key != "tensors"})
    return Links(data=tensors, documents=others, perhaps=named - others)


def evaluation_links(document: dict[str, Any], _: Depot) -> Links:
    """Whatever it names."""
    return Links(perhaps=names_in(document))


register("bushcraft-checkpoint", checkpoint_links)
register("bushcraft-evaluation", evaluation_links)
