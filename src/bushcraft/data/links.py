"""What a data set's manifest refers to: its tokenizer, its tables, and the packs that these list."""

from typing import Any

from bushcraft.data.manifest import PackTable, Split
from bushcraft.store.depot import Depot
from bushcraft.store.links import Links, names_in, register


def dataset_links(document: dict[str, Any], depot: Depot) -> Links:
    """All packs, by the pack tables, and whatever else the manifest names. Errors: `StoreError` if a table is bad."""
    names = [document["tokenizer"]]
    for about in document["splits"].values():
        split = Split(**about)
        table = PackTable(depot, split)
        names += [split.table, split.entries, *(table[i].object for i in range(len(table)))]
    return Links(data=names, perhaps=names_in(document) - set(names))


register("bushcraft-dataset", dataset_links)
