"""What `bushcraft checkpoint import` does with a torch DCP directory."""

import sys
from collections.abc import Callable
from pathlib import Path

from bushcraft.checkpoint.manifest import CheckpointManifest
from bushcraft.store.workspace import Store


def import_directory(
    store: Store,
    folder: Path,
    name: str,
    recipe: str | None,
    overrides: list[str],
    prefix: str,
    allow_pickle: bool,
    progress: Callable[[int, int], None],
) -> tuple[str, CheckpointManifest]:
    """The model is the recipe's, and so is the data set, whose tokenizer it was trained with.

    Errors: `CheckpointError`, `RecipeError`, `DataError`, `StoreError`.
    """
    from bushcraft.train.resolve import load_recipe

    resolved = load_recipe(recipe, [*overrides, f"run.name={name}"]).recipe  # before torch is imported
    import torch

    from bushcraft.checkpoint.dcp import DcpDirectory, import_dcp
    from bushcraft.model.transformer import build_model
    from bushcraft.train.open_data import open_datasets

    datasets = {source: root for source, (root, _) in open_datasets(store, resolved).items()}
    if allow_pickle:
        print(f"note: --allow-pickle runs whatever code is in {folder}/.metadata", file=sys.stderr)
    directory = DcpDirectory(folder, allow_pickle)
    with torch.device("meta"):
        model = build_model(resolved.model)
    wanted = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    document = resolved.model_dump(mode="json")
    return import_dcp(store.depot, directory, name, document, datasets, wanted, prefix, progress)
