"""The tokenizer of the tiny vision models: pieces of the tests' words, and the tokens that mark media."""

import functools
import json

from models.tiny_models import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 512


@functools.cache
def tokenizer_with(special: tuple[str, ...], places: tuple[tuple[str, int], ...], *, wraps: bool = False) -> Tokenizer:
    """Return a tokenizer with special tokens, and further ones at given numbers, up to which the rest are filled.

    ``wraps`` has it put every text between the marks of a sentence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    if wraps:
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    if not places:
        return tokenizer
    written = json.loads(tokenizer.to_str())
    words = dict(places)
    between = range(len(written["model"]["vocab"]), max(words.values()))
    written["model"]["vocab"] |= {f"<{n}>": n for n in between if n not in words.values()} | words
    template = written["added_tokens"][0]
    written["added_tokens"] += [{**template, "id": number, "content": token} for token, number in places]
    return Tokenizer.from_str(json.dumps(written))
