"""Models that were never trained, saved as if they had been: for tests of what is done with a model."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bushcraft.checkpoint.manifest import CheckpointManifest, write_manifest
from bushcraft.checkpoint.tensors import save_tensors
from bushcraft.checkpoint.weights import model_tensors
from bushcraft.data.manifest import DatasetManifest
from bushcraft.data.manifest import write_manifest as write_dataset
from bushcraft.model.initialise import initialise
from bushcraft.model.transformer import build_model
from bushcraft.store.workspace import Store
from bushcraft.train.resolve import load_recipe

N_BYTES = 257
"""The tokens of `byte_tokenizer`."""
SEPARATOR = 256


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, and a separator."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def write_byte_dataset(store: Store) -> DatasetManifest:
    """A data set "bytes" without documents."""
    tokenizer = store.depot.put_bytes(byte_tokenizer().to_str().encode())
    dataset = DatasetManifest("bytes", tokenizer, "bytes", N_BYTES, SEPARATOR, 2, {})
    write_dataset(store.depot, dataset)
    return dataset


def save_model(store: Store, name: str, *settings: str) -> str:
    """A checkpoint of the smoke recipe's shape with these settings; its object name."""
    chosen = ["model.vocab_size=384", "data.sources.python.dataset=bytes", f"run.name={name}", *settings]
    recipe = load_recipe("smoke", chosen).recipe
    write_byte_dataset(store)
    model = build_model(recipe.model)
    initialise(model, 0)
    for parameter in model.parameters():  # projections that begin at zero would give one token for ever
        if parameter.ndim == 2:
            parameter.data.mul_(4.0)
    tensors = save_tensors(store.depot, model_tensors(model))
    dataset, nothing = store.depot.latest("datasets/bytes"), store.depot.put_bytes(b"nothing")
    assert dataset is not None
    return write_manifest(
        store.depot,
        CheckpointManifest(
            run=name,
            position=0,
            step=0,
            receipt="",
            ledger=nothing,
            recipe=recipe.model_dump(mode="json"),
            datasets={"python": dataset},
            code=nothing,
            optimizer={},
            tensors=tensors,
        ),
    )
