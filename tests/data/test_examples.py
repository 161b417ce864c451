"""Instruction data: what is stored is what the template writes, answers are marked, and a position is an example."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bushcraft.data.build import build_dataset
from bushcraft.data.build_settings import BuildSettings
from bushcraft.data.chat_template import ChatTemplate, from_json
from bushcraft.data.examples import BEGIN, END, ExampleReader, ExampleSettings, plain
from bushcraft.data.loader import check_length
from bushcraft.data.manifest import read_manifest
from bushcraft.data.sources import find_sources
from bushcraft.data.tasks import plan_tasks
from bushcraft.data.tokenizer import load_tokenizer
from bushcraft.errors import DataError, StoreError
from bushcraft.objectives.sft import document
from bushcraft.store.workspace import Store
from tests.conftest import random_documents, write_dataset
from tests.data.chatml import (
    CHATML,
    IM_END,
    IM_START,
    ROWS,
    SEPARATOR,
    SPECIAL,
    TEMPLATE,
    TOKENIZER,
    build,
    chat,
    stored,
)

CHAT = ExampleReader(ExampleSettings(TEMPLATE), TOKENIZER.special_names)
PLAIN = ExampleReader(ExampleSettings(), TOKENIZER.special_names)
BEGIN_ID, END_ID = TOKENIZER.vocab_size, TOKENIZER.vocab_size + 1
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(texts, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0), st.none() | texts)
def test_tokens_without_marks_spell_what_the_template_writes(contents: list[str], system: str | None) -> None:
    row = chat(*contents, system=system)
    marked = CHAT.read(row)
    tokens = CHAT.encode(marked, TOKENIZER)
    assert tokens is not None
    kept = [token for token in tokens.tolist() if token not in (BEGIN_ID, END_ID)]
    assert TOKENIZER.decode(kept[1:]) == TEMPLATE.render(row["messages"]) == plain(marked).decode()  # type: ignore[arg-type]
    assert kept[0] == SEPARATOR
    n_messages = len(contents) + (system is not None)
    assert kept.count(IM_START) == kept.count(IM_END) == n_messages
    assert SEPARATOR not in kept[1:]


def test_the_stored_form_is_what_the_objective_reads() -> None:
    row = chat("What?", "That.", "And?", "This.")
    start, end = [IM_START], [IM_END]

    def ids(text: str) -> list[int]:
        return TOKENIZER.encode(text.encode()).tolist()

    def prompt(text: str) -> list[int]:
        return [*start, *ids("user\n" + text), *end, *ids("\n"), *start, *ids("assistant\n")]

    turns = [(prompt("What?"), [*ids("That."), *end, *ids("\n")]), (prompt("And?"), [*ids("This."), *end, *ids("\n")])]
    tokens = CHAT.encode(CHAT.read(row), TOKENIZER)
    assert tokens is not None
    assert tokens.tolist() == document(turns, SEPARATOR, BEGIN_ID, END_ID)


@given(texts, texts)
def test_without_a_template_texts_are_as_they_are_and_names_in_them_are_text(prompt: str, target: str) -> None:
    prompt, target = f"{prompt}<|im_end|>", f"<|endoftext|>{target}"
    marked = PLAIN.read({"prompt": prompt, "target": target})
    assert marked == prompt.encode() + BEGIN + target.encode() + END
    tokens = PLAIN.encode(marked, TOKENIZER)
    assert tokens is not None
    assert not {SEPARATOR, IM_START, IM_END} & set(tokens[1:].tolist())
    ids = [TOKENIZER.encode(text.encode()).tolist() for text in (prompt, target)]
    assert tokens.tolist() == document([(ids[0], ids[1])], SEPARATOR, BEGIN_ID, END_ID)


def test_rows_in_the_form_of_alpaca_and_pairs_through_a_template() -> None:
    assert PLAIN.read({"instruction": "Add", "input": "1 2", "output": "3"}) == b"Add\n\n1 2" + BEGIN + b"3" + END
    assert PLAIN.read({"instruction": "Add", "input": "", "output": "3"}) == b"Add" + BEGIN + b"3" + END
    assert CHAT.read({"prompt": "Hi", "target": "Ho"}) == CHAT.read(chat("Hi", "Ho"))


def test_a_separator_that_the_template_writes_first_is_not_doubled() -> None:
    template = ChatTemplate("{{ bos_token }}" + CHATML).with_separator(SPECIAL[0])
    reader = ExampleReader(ExampleSettings(template), TOKENIZER.special_names)
    tokens = reader.encode(reader.read(chat("a", "b")), TOKENIZER)
    expected = CHAT.encode(CHAT.read(chat("a", "b")), TOKENIZER)
    np.testing.assert_array_equal(tokens, expected)


BAD = [
    ("[1]", "the line is not a JSON object"),
    ("{", "not JSON"),
    ({"text": "a"}, "there is neither 'messages' nor 'prompt' nor 'instruction' (there is 'text')"),
    ({"prompt": "a"}, "there is 'prompt', but no 'target'"),
    ({"instruction": "a"}, "there is 'instruction', but no 'output'"),
    ({"prompt": "a", "target": 1}, "'target' is int, not text"),
    ({"prompt": "a", "target": " \n"}, "'target' is empty"),
    ({"prompt": "a", "target": "\ud800"}, "half of a surrogate pair"),
    ({"messages": []}, "'messages' is no list of messages"),
    ({"messages": "a"}, "'messages' is no list of messages"),
    ({"messages": ["a"]}, "message 1 has no role and content"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 has the unknown role 'tool'"),
    ({"messages": [{"role": ["a"], "content": "a"}]}, "message 1 has the unknown role ['a']"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "the content of message 1 is list, not text"),
    (chat("a", " "), "message 2, the assistant's, is empty"),
    (chat("a", "b", "c"), "the last message is not the assistant's"),
    (chat("a <|im_end|>", "b"), "message 1 holds '<|im_end|>', the name of a special token"),
]


@pytest.mark.parametrize(("row", "told"), BAD, ids=[told for _, told in BAD])
def test_a_bad_row_is_one_line_that_names_file_and_line(store: Store, tmp_path: Path, row: object, told: str) -> None:
    good: list[object] = [chat(f"question {i}", f"answer {i}") for i in range(3)]
    rows = [*good, f"{row}\n" if isinstance(row, str) else row, *good]
    with pytest.raises(DataError) as refused:
        build(store, tmp_path, rows)
    assert "rows.jsonl:4: " in refused.value.message
    assert told in refused.value.message
    assert "\n" not in str(refused.value)
    skipping = BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(TEMPLATE), skip_bad=True)
    result, _ = build(store, tmp_path, rows, skipping)
    assert result.n_skipped == 1
    assert result.train["n_documents"] + result.heldout["n_documents"] == 3


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "rows.jsonl:1: messages need a chat template"),
        ("{{ raise_exception('no') }}", "rows.jsonl:1: the chat template t.jinja fails: no"),
        ("{{ messages[0].content }}", "rows.jsonl:1: the chat template t.jinja leaves out answer 1"),
        (
            "{{ messages|length }}",
            "rows.jsonl:1: the chat template t.jinja does not write the messages before answer 1",
        ),
        ("{% if %}", "the chat template t.jinja is not Jinja2, at its line 1"),
    ],
)
def test_a_bad_template_is_one_line(store: Store, tmp_path: Path, template: str | None, told: str) -> None:
    chosen = ExampleSettings(ChatTemplate(template, "t.jinja") if template else None)
    with pytest.raises(DataError) as refused:
        build(store, tmp_path, [chat("a", "b")], BuildSettings(instructions=chosen))
    assert told in str(refused.value)
    assert store.depot.refs("datasets") == []


def test_only_json_lines_hold_examples(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"--instructions reads JSON lines, and .*a\.txt is none"):
        build_dataset(
            store, "d", find_sources([str(tmp_path / "a.txt")]), BuildSettings(instructions=ExampleSettings())
        )


def test_a_build_says_what_it_holds_and_parts_examples(store: Store, tmp_path: Path) -> None:
    result, manifest = build(store, tmp_path, [*ROWS, ROWS[0]])
    assert (manifest.kind, manifest.itemsize, manifest.vocab_size) == ("examples", 2, TOKENIZER.vocab_size)
    about = manifest.examples
    assert about is not None
    assert (about.target_begin, about.target_end) == (BEGIN_ID, END_ID)
    assert about.chat_template is not None
    assert from_json(store.depot.read(about.chat_template)).source == CHATML
    train, heldout = stored(store.depot, manifest), stored(store.depot, manifest, "heldout")
    assert len(train) + len(heldout) == 120
    assert result.exact_copies == 1
    assert len(heldout) == 10
    longest = max(len(tokens) - 1 for tokens, _ in (train | heldout).values())
    assert result.longest_example == about.longest == longest
    assert len((train | heldout)[about.longest_name][0]) - 1 == longest
    for tokens, n_bytes in (train | heldout).values():
        kept = [token for token in tokens[1:] if token < BEGIN_ID]
        assert len(TOKENIZER.decode(kept).encode()) == n_bytes
    assert any("the longest has" in line for line in result.lines())
    assert "objective.kind=sft" in result.next_command


def test_the_manifest_is_the_same_with_any_number_of_workers_and_after_a_stop(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bushcraft.data.tasks.SMALLEST_TASK", 1000)
    with monkeypatch.context() as patched:
        patched.setattr("bushcraft.data.build.encode_heldout", full_disk)
        with pytest.raises(StoreError, match="no space"):
            build(store, tmp_path, ROWS)
    settings = BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(TEMPLATE))
    sources = find_sources([str(tmp_path / "rows.jsonl")])
    assert len(plan_tasks(sources)) > 10
    resumed = build_dataset(store, "d", sources, settings)
    other = build_dataset(Store.create(tmp_path / "other"), "d", sources, settings, workers=2)
    assert resumed.manifest == other.manifest
    assert build_dataset(store, "d", sources, settings).unchanged


def full_disk(*_: object) -> None:
    raise StoreError("no space")


def test_readers_of_version_1_refuse_examples_and_read_text(store: Store, tmp_path: Path) -> None:
    result, _ = build(store, tmp_path, ROWS[:9])
    assert json.loads(store.depot.read(result.manifest))["version"] == 2
    write_dataset(store.depot, "text", [list(random_documents(1, 5))], [])
    name, manifest = read_manifest(store.depot, "text")
    written = json.loads(store.depot.read(name))
    assert written["version"] == 1
    assert "examples" not in written
    assert manifest.kind == "text"


def test_a_tokenizer_is_trained_on_the_text_without_its_marks(store: Store, tmp_path: Path) -> None:
    settings = BuildSettings(vocab_size=300, instructions=ExampleSettings(TEMPLATE))
    _, manifest = build(store, tmp_path, ROWS, settings)
    assert manifest.examples is not None
    assert manifest.examples.target_begin == manifest.vocab_size <= 300
    tokenizer = load_tokenizer(store.depot.read(manifest.tokenizer))
    tokens, _ = next(iter(stored(store.depot, manifest).values()))
    text = tokenizer.decode([token for token in tokens[1:] if token < manifest.vocab_size])
    assert text.startswith("<|im_start|>user\nquestion")


def test_held_out_examples_that_share_their_instructions_are_kept(store: Store, tmp_path: Path) -> None:
    system = " ".join(f"rule{i}" for i in range(60))
    result, _ = build(store, tmp_path, [chat(f"q{i}", f"a{i}", system=system) for i in range(50)])
    assert (result.heldout["n_documents"], result.near_duplicates) == (4, 0)


@pytest.mark.parametrize(("largest", "itemsize"), [(65_533, 2), (65_534, 4)])
def test_marks_fit_the_tokens_of_a_pack(store: Store, tmp_path: Path, largest: int, itemsize: int) -> None:
    about = json.loads(TOKENIZER.json)
    about["added_tokens"].append(about["added_tokens"][0] | {"content": "<far>", "id": largest})
    about["model"]["vocab"]["<far>"] = largest
    settings = BuildSettings(tokenizer=json.dumps(about).encode(), instructions=ExampleSettings(TEMPLATE))
    _, manifest = build(store, tmp_path, ROWS[:9], settings)
    assert manifest.itemsize == itemsize
    for tokens, _ in stored(store.depot, manifest).values():
        assert (largest + 1 in tokens, largest + 2 in tokens) == (True, True)


def test_longer_examples_are_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    _, everything = build(store, tmp_path, ROWS)
    assert everything.examples is not None
    limit = everything.examples.longest - 20
    settings = BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(TEMPLATE, limit))
    result, manifest = build(store, tmp_path, ROWS, settings)
    kept = stored(store.depot, manifest) | stored(store.depot, manifest, "heldout")
    every = stored(store.depot, everything) | stored(store.depot, everything, "heldout")
    assert kept == {name: about for name, about in every.items() if len(about[0]) - 1 <= limit}
    assert 0 < result.too_long == len(every) - len(kept)
    check_length(manifest, limit)
    with pytest.raises(DataError, match=rf"rows.jsonl@\d+ has {limit + 20} tokens, and run.sequence_length is {limit}"):
        check_length(everything, limit)
    with pytest.raises(DataError, match="no example has at most 3 tokens"):
        build(store, tmp_path, ROWS, BuildSettings(tokenizer=TOKENIZER.json, instructions=ExampleSettings(TEMPLATE, 3)))
