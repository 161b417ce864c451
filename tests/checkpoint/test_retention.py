"""What a policy keeps, and that it never keeps too little."""

from hypothesis import given
from hypothesis import strategies as st

from bushcraft.checkpoint.retention import NEWEST_VERIFIED, RetentionPolicy, SavedCheckpoint, kept


@st.composite
def histories(draw: st.DrawFn) -> list[SavedCheckpoint]:
    """Of one run: later numbers have later positions."""
    steps = draw(st.lists(st.integers(1, 50), max_size=30))
    losses = st.none() | st.floats(0, 10, allow_nan=False)
    saved = [
        SavedCheckpoint(number, sum(steps[:number]), draw(st.booleans()), draw(losses))
        for number in range(1, len(steps) + 1)
    ]
    return draw(st.permutations(saved))


policies = st.builds(
    RetentionPolicy,
    last=st.integers(0, 5),
    every_positions=st.none() | st.integers(1, 200),
    milestones=st.frozensets(st.integers(1, 30), max_size=4),
    best=st.integers(0, 4),
)


@given(histories(), policies)
def test_the_newest_two_verified_are_always_kept(saved: list[SavedCheckpoint], policy: RetentionPolicy) -> None:
    verified = sorted(c.number for c in saved if c.verified)
    assert set(verified[-NEWEST_VERIFIED:]) <= kept(saved, policy) <= {c.number for c in saved}


@given(histories(), policies)
def test_each_rule_keeps_what_it_says(saved: list[SavedCheckpoint], policy: RetentionPolicy) -> None:
    found = kept(saved, policy)
    numbers = sorted(c.number for c in saved)
    assert set(numbers[len(numbers) - policy.last :] if policy.last else []) <= found
    assert policy.milestones & set(numbers) <= found
    if policy.every_positions:
        of_kept = {c.position // policy.every_positions for c in saved if c.number in found}
        assert of_kept == {c.position // policy.every_positions for c in saved}
    judged = sorted(c.heldout_loss for c in saved if c.verified and c.heldout_loss is not None)
    kept_losses = sorted(
        c.heldout_loss for c in saved if c.number in found and c.verified and c.heldout_loss is not None
    )
    assert kept_losses[: policy.best] == judged[: policy.best]


@given(histories(), policies, policies)
def test_policies_add_up(saved: list[SavedCheckpoint], one: RetentionPolicy, other: RetentionPolicy) -> None:
    both = RetentionPolicy(max(one.last, other.last), one.every_positions, one.milestones | other.milestones, one.best)
    assert kept(saved, one) <= kept(saved, both)


@given(histories(), policies)
def test_what_was_kept_is_kept_again(saved: list[SavedCheckpoint], policy: RetentionPolicy) -> None:
    """So that it matters not how often the rest is removed."""
    found = kept(saved, policy)
    assert kept([c for c in saved if c.number in found], policy) == found


def test_a_history_by_hand() -> None:
    losses = {3: 2.5, 4: 2.1, 5: 2.4}
    saved = [SavedCheckpoint(n, 100 * n, n != 9, losses.get(n)) for n in range(1, 10)]
    policy = RetentionPolicy(last=1, every_positions=300, milestones=frozenset({2, 77}), best=1)
    assert kept(saved, policy) == {9, 8, 7, 2, 4, 1, 3, 6}
