"""The ChatML template, and a byte-level BPE that has its tokens."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bushcraft.data.tokenizer import TextTokenizer, load_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
"""Tokens 0, 1, 2."""


def chatml_tokenizer(vocab_size: int = 300) -> TextTokenizer:
    """Trained on a little text."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    return load_tokenizer(engine.to_str().encode())
