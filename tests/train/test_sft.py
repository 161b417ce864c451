"""Instruction data teach a format that the base model lacks; a run on the wrong kind of data is refused."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bushcraft.data.build import build_dataset
from bushcraft.data.build_settings import BuildSettings
from bushcraft.data.chat_template import ChatTemplate, from_json
from bushcraft.data.examples import ExampleSettings
from bushcraft.data.manifest import read_manifest
from bushcraft.data.sources import find_sources
from bushcraft.errors import BushcraftError, DataError
from bushcraft.store.workspace import Store
from bushcraft.train.compare import compare
from bushcraft.train.load_model import load_model
from bushcraft.train.open_data import open_datasets
from bushcraft.train.resolve import load_recipe
from tests.data.chatml import CHATML, chatml_tokenizer
from tests.train.conftest import events_of, train, train_and_stop
from tests.train.saved_model import SEPARATOR, save_model

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola")
THINGS = ("a cup", "a boat", "a lamp", "a drum", "a coat", "a book", "a kite", "a ring", "a pear", "a sled", "a bell")
PLACES = ("the hall", "the barn", "the yard", "the shop", "the attic", "the mill", "the inn", "the den", "the loft")
FORMAT = re.compile(r"\[who=(\w+); what=([\w ]+); where=([\w ]+)\]")
N_KNOWN = 1200
STORIES = "data.sources.python.dataset=stories"
ANSWERS = "data.sources.python.dataset=answers"
SHAPE = ("model.vocab_size=512", "model.n_layers=2", "run.threads=1", "run.sequence_length=80")
SHAPE += ("optimizer.name=muon", "optimizer.learning_rate=1e-2", "checkpoint.every_sequences=100000")
SHAPE += ("evaluate.every_sequences=0", "evaluate.sample_prompts=[]")


def facts(seed: int, n: int) -> list[tuple[str, str, str]]:
    """n different ones."""
    every = [(who, what, where) for who in NAMES for what in THINGS for where in PLACES]
    return random.Random(seed).sample(every, n)


def sentence(fact: tuple[str, str, str]) -> str:
    who, what, where = fact
    return f"{who} saw {what} in {where}."


def answer(fact: tuple[str, str, str]) -> str:
    return "[who={}; what={}; where={}]".format(*fact)


@pytest.fixture(scope="module")
def chat_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the text `stories` and the instruction data `answers`, of facts that are not held out."""
    folder = tmp_path_factory.mktemp("sft")
    store = Store.create(folder / "store")
    known = facts(0, N_KNOWN)
    texts = [" ".join(sentence(fact) for fact in known[i : i + 8]) for i in range(0, N_KNOWN, 8)]
    tokenizer = chatml_tokenizer(448, texts).json
    write_rows(folder / "stories.jsonl", [{"text": text} for text in texts])
    rows = [{"prompt": sentence(fact), "target": answer(fact)} for fact in known]
    write_rows(folder / "answers.jsonl", rows)
    for name, instructions in (("stories", None), ("answers", ExampleSettings(ChatTemplate(CHATML)))):
        settings = BuildSettings(tokenizer=tokenizer, instructions=instructions)
        build_dataset(store, name, find_sources([str(folder / f"{name}.jsonl")]), settings)
    return store


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def share_in_format(store: Store, run: str, chat: bool, n: int = 40) -> tuple[float, float]:
    """Of facts that no data set holds: the share of greedy answers in the format, and of those that are right."""
    known = set(facts(0, N_KNOWN))
    asked = [fact for fact in facts(1, 600) if fact not in known][:n]
    model, _ = load_model(store, run)
    _, dataset = read_manifest(store.depot, "answers")
    assert dataset.examples is not None
    assert dataset.examples.chat_template is not None
    template = from_json(store.depot.read(dataset.examples.chat_template))
    texts = [sentence(fact) for fact in asked]
    prompts = [model.prompts.read_chat(text, template) if chat else model.prompts.read(text) for text in texts]
    model = dataclasses.replace(model, stops=model.stops | model.prompts.answer_ends(template))
    found = [""] * n
    for number, piece in model.continuations(prompts, 30, 0.0, 1.0, 0):
        found[number] += piece
    right = [text == answer(fact) for text, fact in zip(found, asked, strict=True)]
    return sum(FORMAT.fullmatch(text) is not None for text in found) / n, sum(right) / n


def generate(store: Store, run: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bushcraft.cli", "generate", run, "--store", str(store.root), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_instructions_teach_a_format_that_the_base_model_lacks(chat_store: Store) -> None:
    base = train(chat_store, "base", *SHAPE, STORIES, "run.sequences=800")
    assert base.returncode == 0, base.stderr
    before = [share_in_format(chat_store, "base", chat)[0] for chat in (False, True)]
    sft = ("objective.kind=sft", "run.start_from=base", "run.sequences=2400")
    tuned = train(chat_store, "tuned", *SHAPE, ANSWERS, *sft)
    assert tuned.returncode == 0, tuned.stderr
    after, right = share_in_format(chat_store, "tuned", chat=True)
    assert max(before) <= 0.05
    assert after >= 0.9
    assert right >= 0.8
    fact = facts(2, 1)[0]
    asked = ("--chat", "--prompt", sentence(fact), "--temperature", "0")
    assert generate(chat_store, "tuned", *asked).stdout == f"{sentence(fact)}\n{answer(fact)}\n"
    refused = generate(chat_store, "base", *asked)
    assert refused.returncode == 2
    assert "the data of 'base' have no chat template" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_run_on_instructions_falls_in_loss_and_goes_on_to_the_same_bits(chat_store: Store, kind: str) -> None:
    settings = (*SHAPE, ANSWERS, "objective.kind=sft", f"model.kind={kind}", "run.sequences=96")
    straight, stopped = f"straight-{kind}", f"stopped-{kind}"
    done = train(chat_store, straight, *settings)
    assert done.returncode == 0, done.stderr
    told, _ = train_and_stop(chat_store, stopped, "bushcraft.train.trainer._update", 5, *settings)
    assert "stopped at position 40 of 96" in told
    assert train(chat_store, stopped, *settings).returncode == 0
    assert compare(chat_store, straight, stopped).identical
    losses = [event.data["loss"] for event in events_of(chat_store, straight) if event.type == "step"]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((ANSWERS,), "'answers' holds examples of prompts and answers, which objective \"causal\" cannot read"),
        ((ANSWERS, "objective.kind=ul2"), 'objective "ul2" cannot read'),
        (
            (STORIES, "objective.kind=sft"),
            "objective \"sft\" needs prompts and answers, and data set 'stories' holds text",
        ),
        (
            (STORIES, "data.sources.more.dataset=answers"),
            "data set 'stories' holds text, 'answers' examples: a run reads one kind",
        ),
        (
            (ANSWERS, "objective.kind=sft", "run.sequence_length=20"),
            "tokens, and run.sequence_length is 20. Use at least",
        ),
    ],
)
def test_data_of_another_kind_are_refused(chat_store: Store, settings: tuple[str, ...], told: str) -> None:
    recipe = load_recipe("smoke", [*SHAPE, *settings]).recipe
    with pytest.raises(BushcraftError) as refused:
        open_datasets(chat_store, recipe)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refused_run_leaves_no_trace(chat_store: Store) -> None:
    done = train(chat_store, "refused", *SHAPE, ANSWERS)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (chat_store.runs / "refused").exists()


def test_a_message_cannot_forge_special_tokens(chat_store: Store) -> None:
    save_model(chat_store, "bytes")
    model, _ = load_model(chat_store, "bytes")
    template = ChatTemplate(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    ids = model.prompts.read_chat("Hi", template).ids
    assert ids.count(SEPARATOR) == 2
    assert model.prompts.answer_ends(template) == {SEPARATOR}
    assert model.prompts.answer_ends(ChatTemplate(CHATML)) == set()
    with pytest.raises(DataError, match=r"holds '<\|endoftext\|>', the name of a special token"):
        model.prompts.read_chat("Hi <|endoftext|>", template)
