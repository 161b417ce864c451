"""Instruction data for tests: the ChatML template, a byte-level BPE that has its tokens, rows, a build of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bushcraft.data.build import build_dataset
from bushcraft.data.build_result import BuildResult
from bushcraft.data.build_settings import BuildSettings
from bushcraft.data.chat_template import ChatTemplate
from bushcraft.data.examples import ExampleSettings
from bushcraft.data.manifest import DatasetManifest, PackTable, read_manifest
from bushcraft.data.sources import find_sources
from bushcraft.data.tokenizer import TextTokenizer, load_tokenizer
from bushcraft.store.local import LocalDepot
from bushcraft.store.pack import PackReader
from bushcraft.store.workspace import Store

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PANGRAM = "the quick brown fox jumps over the lazy dog "
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
"""Tokens 0, 1, 2."""


def chatml_tokenizer(vocab_size: int = 300, texts: Sequence[str] = (PANGRAM * 20,)) -> TextTokenizer:
    """Trained on a little text."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return load_tokenizer(engine.to_str().encode())


TOKENIZER = chatml_tokenizer()
TEMPLATE = ChatTemplate(CHATML)
SEPARATOR, IM_START, IM_END = range(3)


def chat(*contents: str, system: str | None = None) -> dict[str, object]:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def build(
    store: Store, folder: Path, rows: list[object], settings: BuildSettings | None = None, workers: int = 1
) -> tuple[BuildResult, DatasetManifest]:
    path = folder / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    settings = settings or BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(TEMPLATE))
    result = build_dataset(store, "d", find_sources([str(path)]), settings, workers)
    return result, read_manifest(store.depot, "d")[1]


def stored(depot: LocalDepot, manifest: DatasetManifest, split: str = "train") -> dict[str, tuple[list[int], int]]:
    """Name → tokens and text bytes of each example."""
    table = PackTable(depot, manifest.splits[split])
    packs = (PackReader(depot, table[i]) for i in range(len(table)))
    return {name: (tokens.tolist(), n_bytes) for pack in packs for name, tokens, n_bytes in pack.documents()}


ROWS: list[object] = [chat(f"question {i} " + "x y " * (i % 17), f"answer {i}") for i in range(120)]
