import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bushcraft.data.tokenizer import PIECE_BYTES, TextTokenizer, load_tokenizer, token_itemsize
from bushcraft.data.tokenizer_training import train_tokenizer
from bushcraft.errors import DataError

TEXT = [
    "def add(a, b):\n    return a + b\n",
    "the quick brown fox jumps over the lazy dog\n" * 3,
    "naïve café 🙂\n",
] * 20
OURS = train_tokenizer(TEXT, 400)


def byte_level(**changes: object) -> dict[str, object]:
    return json.loads(OURS.json) | changes


def load(document: dict[str, object], separator: str | None = None) -> TextTokenizer:
    return load_tokenizer(json.dumps(document).encode(), separator, "my.json")


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_and_never_holds_the_separator(text: str) -> None:
    tokens = OURS.encode(text.encode())
    assert OURS.decode(tokens) == text
    assert OURS.separator_id not in tokens


def test_the_name_of_the_separator_in_a_text_is_text() -> None:
    text = "before<|endoftext|>after <|endoftext|>"
    tokens = OURS.encode(text.encode())
    assert OURS.separator_id not in tokens
    assert OURS.decode(tokens) == text
    assert OURS.separator_id == 0


def test_a_separator_that_the_file_does_not_call_special_cannot_be_forged_either() -> None:
    document = byte_level()
    for token in document["added_tokens"]:
        token["special"] = False
    tokenizer = load(document)
    assert tokenizer.separator_id not in tokenizer.encode(b"a<|endoftext|>b")


def test_long_documents_are_encoded_in_pieces_without_loss() -> None:
    text = ("x" * 1000 + "é\n") * 700 + "y" * 600_000
    assert OURS.decode(OURS.encode(text.encode())) == text


def test_a_special_token_is_read_wherever_it_stands_in_a_long_text() -> None:
    text = "a" * (PIECE_BYTES - 4) + "<|endoftext|>b"  # without a line, so that a piece would end inside of the name
    assert OURS.encode_special(text.encode()).tolist().count(OURS.separator_id) == 1


def test_truncation_and_padding_of_a_given_file_are_switched_off() -> None:
    engine = Tokenizer.from_str(OURS.json.decode())
    engine.enable_truncation(5)
    engine.enable_padding(length=50)
    tokenizer = load_tokenizer(engine.to_str().encode())
    assert len(tokenizer.encode(TEXT[0].encode())) > 5
    assert len(tokenizer.encode(b"a")) == 1
    assert tokenizer.fingerprint == OURS.fingerprint


def test_the_fingerprint_does_not_depend_on_how_the_json_is_written() -> None:
    again = load_tokenizer(json.dumps(json.loads(OURS.json), indent=3).encode())
    assert again.fingerprint == OURS.fingerprint
    assert train_tokenizer(TEXT, 300).fingerprint != OURS.fingerprint


def test_training_in_another_process_gives_the_same_tokenizer() -> None:
    code = (
        "import json, sys; from bushcraft.data.tokenizer_training import train_tokenizer;"
        "print(train_tokenizer(json.load(sys.stdin), 400).fingerprint)"
    )
    for threads in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(TEXT), text=True, capture_output=True, check=True,
            env=os.environ | {"RAYON_NUM_THREADS": threads},
        )  # fmt: skip
        assert found.stdout.strip() == OURS.fingerprint


def test_the_usual_separators_are_found_and_others_can_be_named() -> None:
    engine = Tokenizer.from_str(OURS.json.decode())
    engine.add_special_tokens(["<doc>"])
    document = json.loads(engine.to_str())
    assert load(document).separator == "<|endoftext|>"
    named = load(document, "<doc>")
    assert (named.separator, named.separator_id, named.vocab_size) == ("<doc>", OURS.vocab_size, OURS.vocab_size + 1)
    with pytest.raises(DataError, match=r"my\.json has no token '<nil>'"):
        load(document, "<nil>")


def trained(model, trainer, normalizer=None, pre=None, decoder=None) -> dict[str, object]:
    engine = Tokenizer(model)
    if normalizer:
        engine.normalizer = normalizer
    if decoder:
        engine.decoder = decoder
    engine.pre_tokenizer = pre or pre_tokenizers.Whitespace()
    engine.train_from_iterator(TEXT, trainer)
    return json.loads(engine.to_str())


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    words = trained(models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(special_tokens=["[UNK]", "[CLS]"]))
    with pytest.raises(DataError, match=r"my\.json loses text: "):
        load(words)
    lower = byte_level(normalizer=json.loads(trained_lower())["normalizer"])
    with pytest.raises(DataError, match=r"loses text: 'ABCD"):
        load(lower)


def trained_lower() -> str:
    engine = Tokenizer(models.BPE())
    engine.normalizer = normalizers.Lowercase()
    engine.decoder = decoders.ByteLevel()
    return engine.to_str()


def test_what_is_no_tokenizer_or_has_no_separator_is_refused() -> None:
    for data in (b"", b"hello", b"{}", b"\xff\xfe", b'{"version": "1.0"}'):
        with pytest.raises(DataError, match=r"my\.json is not a tokenizer\.json"):
            load_tokenizer(data, where="my.json")
    document = byte_level(added_tokens=[])
    model = dict(document["model"])
    model["vocab"] = {("<weird>" if k == "<|endoftext|>" else k): v for k, v in model["vocab"].items()}
    with pytest.raises(DataError, match="has no token to part documents"):
        load(document | {"model": model})


def test_ids_take_two_bytes_up_to_65536_tokens_and_four_up_to_2_to_the_32() -> None:
    assert [token_itemsize(n) for n in (257, 1 << 16, (1 << 16) + 1, 1 << 32)] == [2, 2, 4, 4]
    with pytest.raises(DataError, match="does not fit 32 bits"):
        token_itemsize((1 << 32) + 1)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="--vocab-size 256 has no room"):
        train_tokenizer(TEXT, 256)
