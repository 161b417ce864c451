import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bushcraft.data import split
from bushcraft.data.scan import record_of
from bushcraft.data.split import RANKS, RECORD, Role, choose_bounds, first_copies, roles


def records_of(texts: list[bytes]) -> split.Records:
    return np.array([record_of(text) for text in texts], RECORD)


def decide(tasks: list[list[bytes]], fraction: float, limit: int, keep_copies: bool = False) -> list[list[int]]:
    records = [records_of(task) for task in tasks]
    kept = [np.ones(len(r), bool) for r in records] if keep_copies else first_copies(records.__getitem__, len(tasks))
    bounds = choose_bounds(records.__getitem__, kept, fraction, limit, 1000, RANKS - 1)
    return [roles(r, k, bounds).tolist() for r, k in zip(records, kept, strict=True)]


texts = st.lists(st.lists(st.binary(min_size=1, max_size=3), max_size=40), min_size=1, max_size=5)


@settings(deadline=None)
@given(texts, st.floats(0, 0.5), st.integers(1, 100), st.booleans())
def test_copies_fall_on_one_side_and_the_limits_hold(
    tasks: list[list[bytes]], fraction: float, limit: int, keep: bool
) -> None:
    decided = decide(tasks, fraction, limit, keep)
    side: dict[bytes, set[int]] = {}
    for texts_, roles_ in zip(tasks, decided, strict=True):
        for text, role in zip(texts_, roles_, strict=True):
            side.setdefault(text, set()).add(role)
    every = [(t, r) for ts, rs in zip(tasks, decided, strict=True) for t, r in zip(ts, rs, strict=True)]
    assert all(len(found - {Role.COPY}) == 1 for found in side.values())
    heldout = [len(text) for text, role in every if role == Role.HELDOUT]
    train = [len(text) for text, role in every if role == Role.TRAIN]
    if not keep:
        assert sum(heldout) <= min(limit, sum(heldout) + sum(train))
        assert sum(heldout) <= sum(train)
        assert len(heldout) + len(train) == len(side)
    if fraction == 0:
        assert not heldout


def test_the_share_is_met_and_the_choice_does_not_depend_on_tasks() -> None:
    documents = [b"document %d" % i for i in range(5000)]
    whole = decide([documents], 0.1, 10**9)[0]
    assert whole.count(Role.HELDOUT) == 500
    parts = decide([documents[:1700], [], documents[1700:]], 0.1, 10**9)
    assert [role for part in parts for role in part] == whole


def test_the_limit_in_bytes_beats_the_share() -> None:
    documents = [b"document %05d" % i for i in range(5000)]
    assert decide([documents], 0.5, 1400)[0].count(Role.HELDOUT) == 100


def test_of_two_documents_one_is_held_out_and_of_one_none() -> None:
    assert sorted(decide([[b"a" * 10, b"b" * 10]], 0.01, 10**6)[0]) == [Role.TRAIN, Role.HELDOUT]
    assert decide([[b"a" * 10]], 0.5, 10**6)[0] == [Role.TRAIN]


def test_copies_are_found_across_tasks_however_many_parts_the_work_is_in(monkeypatch) -> None:
    rng = random.Random(0)
    tasks = [[b"%d" % rng.randrange(300) for _ in range(200)] for _ in range(4)]
    records = [records_of(task) for task in tasks]
    expected, seen = [], set()
    for task in tasks:
        expected.append([text not in seen and not seen.add(text) for text in task])
    for in_memory in (7, 100, 10**6):
        monkeypatch.setattr(split, "_RECORDS_IN_MEMORY", in_memory)
        assert [mask.tolist() for mask in first_copies(records.__getitem__, 4)] == expected


def test_the_tokenizer_sees_training_documents_only_and_a_bounded_sample() -> None:
    records = records_of([b"document %05d" % i for i in range(5000)])
    kept = [np.ones(len(records), bool)]
    bounds = choose_bounds([records].__getitem__, kept, 0.1, 10**9, 14 * 300, RANKS - 1)
    sampled = (records["rank"] < bounds.sample) & (roles(records, kept[0], bounds) == Role.TRAIN)
    assert sampled.sum() == 300
