"""FlexAttention's block tables from arithmetic are those that torch finds by looking at every pair, and its numbers
are the dense formula's (forwards: it has no backward pass on the CPU)."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from bushcraft.model import attention_flex
from bushcraft.model.attention import Mask
from bushcraft.model.attention_flex import block_mask, flex_segment_attention
from tests.model.attention_cases import Case, cases, seen

TABLES = ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")


def masks(case: Case) -> tuple[BlockMask, BlockMask]:
    """Ours, and torch's from a dense evaluation."""
    visible = seen(case.mask, case.queries, case.keys).flatten(2).flatten(0, 1)
    length, n_keys = visible.shape
    theirs = create_block_mask(lambda _b, _h, q, k: visible[q, k], 1, 1, length, n_keys, device="cpu")
    shapes = torch.Size(case.queries), torch.Size(case.keys)
    return block_mask(case.mask.pieces, case.mask.window, *shapes, torch.device("cpu")), theirs


def check_tables(case: Case) -> None:
    ours, theirs = masks(case)
    assert ours.shape == theirs.shape
    for name in (*TABLES, *(f"full_{name}" for name in TABLES)):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    q, k = torch.arange(ours.shape[-2])[:, None], torch.arange(ours.shape[-1])
    assert torch.equal(ours.mask_mod(q, q, q, k), theirs.mask_mod(q, q, q, k))


def example_case(mask: Mask, queries: tuple[int, int], keys: tuple[int, int]) -> Case:
    return Case(mask, queries, keys, 2, None, 5.0)


LARGE = [
    example_case(Mask(torch.tensor([[0, 0, 1024, 0, 0, 1024, 1]])), (1, 1024), (1, 1024)),
    example_case(Mask(torch.tensor([[0, 0, 1000, 0, 0, 1000, 1]]), 300), (1, 1000), (1, 1000)),
    example_case(Mask(torch.tensor([[0, 0, 300, 0, 0, 300, 0], [0, 300, 484, 0, 0, 784, 1]])), (2, 784), (2, 784)),
    example_case(Mask(torch.tensor([[0, 0, 500, 1, 9, 700, 0], [1, 5, 495, 0, 0, 709, 0]]), 200), (2, 500), (2, 709)),
    example_case(Mask(torch.tensor([[0, 64, 128, 0, 0, 256, 0], [0, 0, 64, 0, 0, 256, 0]])), (1, 192), (1, 256)),
    example_case(Mask(torch.tensor([[0, 0, 127, 0, 0, 256, 0]])), (1, 128), (1, 256)),  # a query that sees nothing
]


@pytest.mark.parametrize("case", LARGE)
def test_tables_of_large_masks(case: Case) -> None:
    check_tables(case)


@settings(max_examples=40, deadline=None)
@given(case=cases(longest=200).filter(lambda case: case.queries[1] > 0 and case.keys[1] > 0))
def test_tables_of_random_masks(case: Case) -> None:
    check_tables(case)


def test_whole_blocks_are_asked_for_no_pair() -> None:
    mask = masks(LARGE[0])[0]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]
    assert mask.kv_num_blocks.tolist() == [[[1] * 8]]


def check_numbers(case: Case) -> None:
    inputs = [x.detach() for x in case.inputs(torch.float32, width=16)]
    scale = 0.25 if case.scale is None else case.scale
    out = flex_segment_attention(*inputs, case.mask.pieces, scale, case.mask.window, case.soft_cap)
    torch.testing.assert_close(out.double(), case.reference(inputs, out)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases().filter(lambda case: case.queries[1] > 0))
def test_numbers_of_random_masks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_flex, "_compiled", lambda: attention_flex._kernel)
    check_numbers(case)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_no_keys_at_all_give_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_flex, "_compiled", lambda: attention_flex._kernel)
    check_numbers(example_case(Mask(torch.tensor([[1, 0, 5, 0, 0, 0, 0]])), (2, 5), (2, 0)))


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE[1:4])
def test_numbers_of_the_compiled_kernel_which_reads_the_tables(case: Case) -> None:
    check_numbers(case)


def test_a_compiler_takes_it_into_its_graph_and_other_pieces_compile_nothing_new() -> None:
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_segment_attention, backend=compilations, fullgraph=True)
    q, k = torch.randn(2, 70, 4, 16), torch.randn(2, 70, 2, 16)
    for pieces in (
        [[0, 0, 70, 0, 0, 70, 1]],
        [[0, 0, 70, 0, 0, 70, 0], [1, 0, 9, 1, 0, 9, 1]],
        [[1, 0, 70, 1, 0, 70, 1]],
    ):
        table = torch.tensor(pieces)
        torch._dynamo.maybe_mark_dynamic(table, 0)
        out = compiled(q, k, k, table, 0.25, None, 5.0)
        expected = example_case(Mask(table), (2, 70), (2, 70)).reference([q, k, k], out)[0]
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    assert compilations.frame_count <= 2  # one table of one piece, then tables of any number


def test_the_tables_operator_is_sound_for_the_compiler() -> None:
    pieces = torch.tensor([[0, 0, 70, 0, 0, 200, 1]])
    arguments = (pieces, 20, 2, 70, 1, 200, torch.device("cpu"))
    torch.library.opcheck(torch.ops.bushcraft.block_tables.default, arguments)
