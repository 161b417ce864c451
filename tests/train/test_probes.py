"""The probes' answers are right, and do not depend on when they are asked."""

import re

from tokenizers import pre_tokenizers

from bushcraft.train.probes import BRACKETS, NOUNS, VERBS, probes

BY_NAME = {probe.name: probe.questions for probe in probes(200)}


def test_the_same_seed_asks_the_same_questions() -> None:
    assert probes(20, seed=3) == probes(20, seed=3)
    assert probes(20, seed=3) != probes(20, seed=4)
    assert probes(5)[0].questions == probes(9)[0].questions[:5]


def test_sums_are_right() -> None:
    for digits in (1, 2, 3):
        questions = BY_NAME[f"addition, {digits} digit{'s' if digits > 1 else ''}"]
        for question in questions:
            a, b = map(int, re.findall(r"(\d+) \+ (\d+) =$", question.context)[0])
            assert int(question.answer) == a + b
            assert max(len(str(a)), len(str(b))) == digits


def test_the_word_after_the_same_word_is_the_answer() -> None:
    for question in BY_NAME["induction"]:
        *words, again = question.context.split()
        assert question.answer == f" {words[words.index(again) + 1]}"


def test_the_value_of_the_key_is_the_answer() -> None:
    for question in BY_NAME["recall"]:
        *pairs, asked = question.context.split("\n")
        assert dict(pair.split(": ") for pair in pairs)[asked.rstrip(":")] == question.answer.strip()


def test_the_last_word_of_the_list_is_the_answer() -> None:
    for question in BY_NAME["copy"]:
        first, second = question.context.split("\n")
        assert f"{second}{question.answer}" == first


def test_the_innermost_bracket_is_closed() -> None:
    for question in BY_NAME["brackets"]:
        text = question.context.replace(" ", "")
        while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", text)) != text:
            text = shorter
        assert f" {BRACKETS[text[-1]]}" == question.answer


def test_no_answer_joins_the_last_token_of_its_context() -> None:
    """A tokenizer of words and punctuation, as byte-pair encodings split text before they merge."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, questions in BY_NAME.items():
        for question in questions:
            alone = [piece for piece, _ in splitter.pre_tokenize_str(question.context)]
            whole = [piece for piece, _ in splitter.pre_tokenize_str(question.context + question.answer)]
            assert whole[: len(alone)] == alone, name


def test_the_verb_agrees_with_its_subject() -> None:
    for question in BY_NAME["grammar"]:
        subject = question.context.split()[1]
        plural = any(subject == forms[1] for forms in NOUNS)
        assert any(question.answer.strip() == forms[plural] for forms in VERBS)
        assert question.wrong is not None
        assert any(question.wrong.strip() == forms[1 - plural] for forms in VERBS)
