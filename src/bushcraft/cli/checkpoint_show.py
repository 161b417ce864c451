"""`bushcraft checkpoint show` and `diff`: what is in a checkpoint, where it lies, and how two of them differ."""

from typing import Annotated

import typer

from bushcraft.cli.options import JsonOption, StoreOption, open_store, print_json, print_table

Named = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="RUN, RUN@NUMBER or a manifest's object name.")]


def show(checkpoint: Named, store: StoreOption = None, json: JsonOption = False) -> None:
    """What is in a checkpoint, and which depots have it."""
    from bushcraft.checkpoint.contents import (
        Places,
        all_objects,
        groups,
        recipe_digest,
        shared_bytes,
        tensor_bytes,
        tensor_objects,
    )
    from bushcraft.checkpoint.manifest import read_manifest
    from bushcraft.checkpoint.named import manifest_named

    depot = open_store(store).depot
    name = manifest_named(depot, checkpoint)
    manifest = read_manifest(depot, name)
    history = [value for _, value in depot.history(f"checkpoints/{manifest.run}")]
    older = history[history.index(name) + 1 :] if name in history else []
    n_bytes, places, in_tensors = tensor_bytes(manifest), Places(depot), tensor_objects(manifest)
    shared = shared_bytes(manifest, read_manifest(depot, older[0]) if older else None)
    about = {
        "manifest": name,
        "run": manifest.run,
        "position": manifest.position,
        "step": manifest.step,
        "recipe": recipe_digest(manifest),
        "bytes": n_bytes,
        "shared_with_the_one_before": shared / n_bytes if n_bytes else 0.0,
        "durable_in": places.of_all(all_objects(name, manifest)),
    }
    objects = [
        {"object": found, "tensor_bytes": in_tensors.get(found, 0), "depots": places.of(found)}
        for found in all_objects(name, manifest)
    ]
    tensors = groups(manifest)
    if json:
        return print_json({**about, "tensors": [vars(group) for group in tensors], "objects": objects})
    for key, value in about.items():
        print(f"{key.replace('_', ' '):28} {', '.join(value) or 'none' if isinstance(value, list) else value}")
    print()
    print_table(
        ["tensors", "dtype", "number", "elements", "MiB"],
        [[g.name, ", ".join(g.dtypes), str(g.tensors), str(g.elements), f"{g.bytes / 2**20:.1f}"] for g in tensors],
        ("number", "elements", "MiB"),
    )
    print()
    rows = [[str(o["object"]), f"{in_tensors.get(str(o['object']), 0) / 2**20:.1f}", _listed(o)] for o in objects]
    return print_table(["object", "MiB of tensors", "depots"], rows, ("MiB of tensors",))


def diff(one: Named, other: Named, store: StoreOption = None, json: JsonOption = False) -> None:
    """The tensors that differ between two checkpoints. Exit code 1 if there are any."""
    from bushcraft.checkpoint.manifest import read_manifest
    from bushcraft.checkpoint.named import manifest_named

    depot = open_store(store).depot
    manifests = [read_manifest(depot, manifest_named(depot, name)) for name in (one, other)]

    from bushcraft.checkpoint.difference import differences  # torch takes seconds: a wrong name is told before

    found = differences(depot, manifests[0].tensors, manifests[1].tensors)
    if json:
        print_json([vars(difference) for difference in found])
    elif found:
        rows = [[d.name, d.why or f"{d.max_abs:.3g}", "" if d.why else f"{d.relative_norm:.3g}"] for d in found]
        print_table(["tensor", "max |a - b|", "‖a - b‖ / ‖a‖"], rows)
    else:
        print(f"all {len(manifests[0].tensors)} tensors are equal, bit for bit")
    raise typer.Exit(1 if found else 0)


def _listed(about: dict[str, object]) -> str:
    depots = about["depots"]
    return ", ".join(depots) if isinstance(depots, list) and depots else "none"
