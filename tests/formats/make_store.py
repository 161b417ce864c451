"""Make the fixture store of one format version: python tests/formats/make_store.py tests/formats/store-v1

A fixture is made once, when a format version is new, and then kept for ever: every later version must open it.
"""

import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bushcraft.data.manifest import DatasetManifest, split_from_packs, write_manifest
from bushcraft.store.pack import PackWriter
from bushcraft.store.workspace import Store
from bushcraft.train.open_session import open_session
from bushcraft.train.progress import stdout_console
from bushcraft.train.resolve import load_recipe
from bushcraft.train.stop import StopRequest
from bushcraft.train.trainer import train

SETTINGS = (
    "run.name=fixture",
    "run.sequences=32",
    "run.sequence_length=16",
    "run.threads=1",
    "model.vocab_size=257",
    "model.d_model=8",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.d_ff=8",
    "checkpoint.every_sequences=16",
    "evaluate.sample_prompts=[]",
)


def main() -> None:
    store = Store.create(Path(sys.argv[1]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    splits = {}
    for split, n_documents in (("train", 20), ("heldout", 2)):
        writer = PackWriter(store.depot, 2)
        for number in range(n_documents):
            text = f"{split} document {number}: " + "bushcraft " * number
            ids = [0, *tokenizer.encode(text).ids]
            writer.add(np.array(ids, np.uint16), f"{split}-{number}", len(text.encode()))
        entry = writer.close()
        assert entry is not None
        splits[split] = split_from_packs(store.depot, [entry])
    root = store.depot.put_bytes(tokenizer.to_str().encode())
    write_manifest(store.depot, DatasetManifest("python", root, "bytes", 257, 0, 2, splits))
    session = open_session(store, load_recipe("smoke", SETTINGS).recipe, print)
    train(session, stdout_console(), StopRequest())
    session.close(ended_well=True)


if __name__ == "__main__":
    main()
