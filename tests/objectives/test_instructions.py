"""Instruction data: each answer is asked once, from all that came before it, and no model sees a marker."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.objectives.examples import Examples
from bushcraft.objectives.objective import Objective, ObjectiveMixture
from bushcraft.objectives.sft import Instructions, document
from bushcraft.objectives.texts import Texts

SEPARATOR, BEGIN, END = 0, 90, 91
Turns = list[tuple[list[int], list[int]]]
tokens = st.lists(st.integers(0, 89), max_size=5)  # a template may write separators inside of an example
conversations = st.lists(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3), max_size=5)


def texts_of(documents: list[Turns], first: int = 0) -> Texts:
    each = [document(turns, SEPARATOR, BEGIN, END) for turns in documents]
    n, zeros = len(each), np.zeros(len(each), np.int64)
    flat = np.array([t for text in each for t in text], np.uint16)
    return Texts(flat, np.array([len(text) for text in each], np.int64), first + np.arange(n), zeros, zeros)


def sides(examples: Examples) -> list[tuple[list[int], list[int]]]:
    inputs = np.split(examples.inputs, examples.input_length.cumsum())[:-1]
    targets = np.split(examples.targets, examples.target_length.cumsum())[:-1]
    return [(a.tolist(), b.tolist()) for a, b in zip(inputs, targets, strict=True)]


TURNS: Turns = [([5, 6, 7], [8, 9]), ([10], [11, 12])]


def test_instructions_ask_for_answers_only() -> None:
    examples = Instructions(SEPARATOR, BEGIN, END).examples(texts_of([TURNS, [([3], [4])]]))
    assert sides(examples) == [
        ([0, 5, 6, 7], [8, 9, 10, 11, 12, 0]),
        ([0, 3], [4, 0]),
    ]
    assert examples.weights is not None
    assert examples.weights.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


def test_an_encoder_reads_all_that_came_before_an_answer() -> None:
    examples = Instructions(SEPARATOR, BEGIN, END, every_answer=True).examples(texts_of([TURNS, [([3], [4])]], 4))
    assert sides(examples) == [
        ([0, 5, 6, 7], [8, 9, 0]),
        ([0, 5, 6, 7, 8, 9, 10], [11, 12, 0]),
        ([0, 3], [4, 0]),
    ]
    assert examples.position.tolist() == [4, 4, 5]


@settings(max_examples=150, deadline=None)
@given(documents=conversations)
def test_what_is_asked_of_a_text_is_its_answers_and_the_end(documents: list[Turns]) -> None:
    examples = Instructions(SEPARATOR, BEGIN, END).examples(texts_of(documents))
    assert examples.weights is not None
    weights = np.split(examples.weights, examples.target_length.cumsum())[:-1]
    for turns, (inputs, targets), weight in zip(documents, sides(examples), weights, strict=True):
        assert inputs == [SEPARATOR, *turns[0][0]]
        assert inputs + targets == [SEPARATOR, *(t for turn in turns for side in turn for t in side), SEPARATOR]
        asked = [t for t, w in zip(targets, weight.tolist(), strict=True) if w]
        assert asked == [*(t for _, answer in turns for t in answer), SEPARATOR]


@settings(max_examples=150, deadline=None)
@given(documents=conversations)
def test_each_answer_is_an_example_behind_all_that_came_before(documents: list[Turns]) -> None:
    wanted = []
    for turns in documents:
        before = [SEPARATOR]
        for prompt, answer in turns:
            wanted.append(([*before, *prompt], [*answer, SEPARATOR]))
            before += [*prompt, *answer]
    assert sides(Instructions(SEPARATOR, BEGIN, END, every_answer=True).examples(texts_of(documents))) == wanted


@settings(max_examples=100, deadline=None)
@given(documents=conversations, every_answer=st.booleans(), data=st.data())
def test_an_example_that_fills_its_row_may_lack_the_last_marker(
    documents: list[Turns], every_answer: bool, data: st.DataObject
) -> None:
    objective, whole = Instructions(SEPARATOR, BEGIN, END, every_answer), texts_of(documents)
    cut = np.array([data.draw(st.booleans()) for _ in documents], np.bool_)
    kept = np.ones(len(whole.tokens), np.bool_)
    kept[(whole.start + whole.length - 1)[cut]] = False
    shorter = dataclasses.replace(whole, tokens=whole.tokens[kept], length=whole.length - cut)
    assert sides(objective.examples(shorter)) == sides(objective.examples(whole))
    weights, wanted = objective.examples(shorter).weights, objective.examples(whole).weights
    assert (weights is None) == (wanted is None) == every_answer
    if weights is not None and wanted is not None:
        assert weights.tolist() == wanted.tolist()


def test_a_mixture_may_give_a_part_no_text_at_all() -> None:
    parts: dict[str, Objective] = {
        "answers": Instructions(SEPARATOR, BEGIN, END),
        "each": Instructions(SEPARATOR, BEGIN, END, every_answer=True),
    }
    mixture = ObjectiveMixture(parts, ((0, {"answers": 1.0, "each": 1.0}),))
    found = [sides(mixture.examples(texts_of([TURNS], position))) for position in range(2)]
    assert sorted(map(len, found)) == [1, 2]
