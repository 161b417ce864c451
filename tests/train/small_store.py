"""A store with the data sets `python` and `other`, of a few files of the standard library, and a tokenizer of 512."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bushcraft.data.manifest import DatasetManifest, split_from_packs, write_manifest
from bushcraft.store.pack import PackWriter
from bushcraft.store.workspace import Store


def small_store(root: Path) -> Store:
    store = Store.create(root)
    texts = dict(_texts())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts.values(),
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    names = sorted(texts)
    parts = {"python": names[3:20], "other": names[20:]}
    for dataset, train in parts.items():
        splits = {}
        for split, chosen in (("train", train), ("heldout", names[:3])):
            writer = PackWriter(store.depot, 2)
            for name in chosen:
                ids = [0, *tokenizer.encode(texts[name]).ids]
                writer.add(np.array(ids, np.uint16), name, len(texts[name].encode()))
            entry = writer.close()
            assert entry is not None
            splits[split] = split_from_packs(store.depot, [entry])
        root = store.depot.put_bytes(tokenizer.to_str().encode())
        write_manifest(store.depot, DatasetManifest(dataset, root, "bpe-512", 512, 0, 2, splits))
    return store


def _texts() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-h]*.py")):
        text = path.read_text()
        if 2000 < len(text) < 20_000:
            yield path.name, text
