"""Probes: small questions with known answers, made from a seed, the same for every tokenizer.

Each probe is a list of questions; a model answers one if its most likely tokens after the context are the answer, or,
where there are two answers to choose from, if it finds the right one likelier. Sources: induction (Olsson et al. 2022,
arXiv:2209.11895), recall of pairs (Arora et al. 2023, arXiv:2312.04927), minimal pairs (Warstadt et al. 2020,
arXiv:1912.00582).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

WORDS = (
    "apple", "river", "stone", "cloud", "table", "green", "house", "light", "paper",
    "music", "water", "glass", "horse", "bread", "chair", "field", "night", "plant",
    "smile", "train", "tower", "ocean", "forest", "window", "garden", "bridge", "candle",
    "silver", "purple", "winter",
)  # fmt: skip
"""Common words, which begin differently."""
NOUNS = (("dog", "dogs"), ("cat", "cats"), ("boy", "boys"), ("girl", "girls"), ("bird", "birds"), ("tree", "trees"))
VERBS = (("runs", "run"), ("sleeps", "sleep"), ("falls", "fall"), ("moves", "move"), ("waits", "wait"))
PREPOSITIONS = ("near", "behind", "with", "under")
BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Question:
    """What follows the context?"""

    context: str
    answer: str
    wrong: str | None = None
    """The other answer, where there are two."""


@dataclass(frozen=True)
class Probe:
    """Questions of one kind."""

    name: str
    questions: list[Question]
    chance: float
    """The share that guessing would answer."""


def probes(n_questions: int = 100, seed: int = 0) -> list[Probe]:
    """All probes, each of `n_questions`."""
    kinds: dict[str, tuple[Callable[[random.Random], Question], float]] = {
        "copy": (_copy, 1 / len(WORDS)),
        "induction": (_induction, 1 / len(WORDS)),
        "recall": (_recall, 1 / 4),
        "addition, 1 digit": (lambda rng: _addition(rng, 1), 1 / 19),
        "addition, 2 digits": (lambda rng: _addition(rng, 2), 1 / 199),
        "addition, 3 digits": (lambda rng: _addition(rng, 3), 1 / 1999),
        "brackets": (_brackets, 1 / 3),
        "grammar": (_agreement, 1 / 2),
    }
    return [
        Probe(name, [make(random.Random(f"{seed}/{name}/{i}")) for i in range(n_questions)], chance)
        for name, (make, chance) in kinds.items()
    ]


def _copy(rng: random.Random) -> Question:
    """The last word of a list that is written a second time."""
    words = rng.sample(WORDS, 5)
    return Question(f"{' '.join(words)}\n{' '.join(words[:-1])}", f" {words[-1]}")


def _induction(rng: random.Random) -> Question:
    """The word that followed the same word before, among others."""
    words = rng.sample(WORDS, 9)
    again = rng.randrange(1, 7)
    return Question(f"{' '.join(words)} {words[again]}", f" {words[again + 1]}")


def _recall(rng: random.Random) -> Question:
    """The value of one of four keys."""
    keys, values = rng.sample(WORDS, 4), rng.sample(WORDS, 4)
    pairs = "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))
    asked = rng.randrange(4)
    return Question(f"{pairs}{keys[asked]}:", f" {values[asked]}")


def _addition(rng: random.Random, n_digits: int) -> Question:
    low = 0 if n_digits == 1 else 10 ** (n_digits - 1)
    a, b = (rng.randrange(low, 10**n_digits) for _ in range(2))
    shown = [(1, 2), (3, 4)]
    return Question("".join(f"{x} + {y} = {x + y}\n" for x, y in shown) + f"{a} + {b} =", f" {a + b}")


def _brackets(rng: random.Random) -> Question:
    """The bracket that closes the innermost open one; parted by spaces, since tokenizers join what stands together."""
    text: list[str] = []
    stack: list[str] = []
    for _ in range(8):
        if stack and rng.random() < 0.4:
            text.append(BRACKETS[stack.pop()])
        else:
            stack.append(rng.choice(list(BRACKETS)))
            text.append(stack[-1])
    return Question(" ".join(text), f" {BRACKETS[stack[-1]]}") if stack else _brackets(rng)


def _agreement(rng: random.Random) -> Question:
    """A verb agrees with its subject, and not with the nouns between them. S → NP V: the right and the wrong V."""
    plural, verb = rng.randrange(2), rng.choice(VERBS)
    context = f"The {_noun_phrase(rng, plural, 1.0)}"
    return Question(context, f" {verb[plural]}", f" {verb[1 - plural]}")


def _noun_phrase(rng: random.Random, plural: int, share: float) -> str:
    """NP → N | N P "the" NP, the latter with probability `share`; inner nouns are of any number."""
    noun = rng.choice(NOUNS)[plural]
    if rng.random() >= share:
        return noun
    return f"{noun} {rng.choice(PREPOSITIONS)} the {_noun_phrase(rng, rng.randrange(2), 0.3)}"
