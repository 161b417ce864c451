"""The preview shows what the trainer would make: read and predicted parts together are the text."""

import json
import subprocess
import sys

import pytest

from bushcraft.store.workspace import Store
from bushcraft.train.preview import colored, plain, preview_of
from bushcraft.train.resolve import load_recipe
from tests.train.conftest import TINY_MODEL


def shown(store: Store, *settings: str, n: int = 4):  # type: ignore[no-untyped-def]
    recipe = load_recipe("smoke", [*TINY_MODEL, *settings]).recipe
    return preview_of(store, recipe, "python", 7, n)


def test_a_prefix_is_read_both_ways_and_the_rest_is_predicted(text_store: Store) -> None:
    for example in shown(text_store, "objective.kind=prefix").examples:
        roles = [span.role for span in example.decoder]
        assert roles in (["both ways", "predicted"], ["read", "predicted"])
        assert not example.encoder


def test_an_encoder_reads_and_the_decoder_predicts(text_store: Store) -> None:
    preview = shown(text_store, "model.kind=encoder_decoder", "model.vocab_size=640", "objective.kind=ul2")
    for example in preview.examples:
        assert [span.role for span in example.encoder] == ["both ways"]
        assert [span.role for span in example.decoder] == ["read", "predicted"]
        assert example.decoder[0].tokens == [0]
        text = plain(example.decoder, preview.decode)
        assert text.startswith("<|endoftext|>⟦<extra_id_0>")
        assert text.endswith("<|endoftext|>⟧")
        assert preview.decode(example.encoder[0].tokens).startswith(("[NLU]", "[S2S]", "[NLG]"))
        colours = colored(example.encoder, preview.decode, preview.special)
        assert colours.plain == preview.decode(example.encoder[0].tokens)
        assert any("reverse" in str(span.style) for span in colours.spans)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--recipe", "smoke", "--set", "model.vocab_size=512", "--set", "objective.kind=ul2"], "has no room"),
        (["--recipe", "nowhere"], "there is no recipe nowhere"),
        (["--position", "3"], "--set and --position are about a recipe"),
        (["--split", "nowhere"], "has no split 'nowhere'"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(text_store: Store, options: list[str], told: str) -> None:
    command = [sys.executable, "-m", "bushcraft.cli", "data", "preview", "python", "--store", str(text_store.root)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_prints_each_side(text_store: Store) -> None:
    command = [sys.executable, "-m", "bushcraft.cli", "data", "preview", "python", "--store", str(text_store.root)]
    settings = ["model.kind=encoder_decoder", "model.vocab_size=640", "objective.kind=span_corruption"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run([*command, "--recipe", "smoke", *options, "--json"], capture_output=True, text=True)
    examples = json.loads(done.stdout)
    assert len(examples) == 3
    assert {span["role"] for example in examples for span in example["decoder"]} == {"read", "predicted"}
