"""What holding answers to a JSON Schema costs: decoding with and without, on the same model, in interleaved rounds.

    python benchmarks/grammar.py [MODEL_DIRECTORY] [--rounds N] [--tokens N]

Without a directory a random llama (fp32, 29 million parameters, 8,192 tokens) stands in for a small real model; random
weights decode as fast as trained ones. The schema is a list that is never finished, so every answer runs to the same
number of tokens. Figures are medians over the rounds: milliseconds a step by the wall clock, and the ratio within each
round by wall clock and by CPU time, which a busy machine disturbs less. Compiling is measured apart: it happens once
for a schema, outside the thread that runs MLX.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load
from mlx_lm.generate import BatchGenerator
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.grammar import CompiledGrammar, GrammarCompiler
from mlxk.domain.generation.grammar import Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "address": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z][a-z]{1,20} [0-9]{1,3}$"}]},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
SCHEMA = json.dumps({"type": "array", "items": PERSON, "minItems": 1000})


def random_model(vocabulary: int = 8192) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """Return a random llama and a tokenizer trained on made-up words."""
    draw = random.Random(1)
    syllables = [first + second for first in "bcdfghjklmnprstvwz" for second in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(60_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words), '{"a": [1, 2], "b": "c"}, ' * 50], trainer)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=512,
        num_hidden_layers=8,
        intermediate_size=1408,
        num_attention_heads=8,
        rms_norm_eps=1e-6,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    mx.random.seed(0)
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def seconds_a_step(
    network: nn.Module, streams: int, tokens: int, grammar: CompiledGrammar | None
) -> tuple[float, float]:
    """Decode a batch and return the seconds of one step by wall clock and CPU time, prefill left out."""
    generator = BatchGenerator(network, completion_batch_size=streams, sampler=mx.random.categorical)
    generator.insert(
        [[5 + index, 20, 30] for index in range(streams)],
        max_tokens=[tokens] * streams,
        logits_processors=[[grammar.constrain()] if grammar else None for _ in range(streams)],
    )
    while not generator.next_generated():
        pass
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while generator.next_generated():
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    generator.close()
    return wall / steps, cpu / steps


def main() -> None:
    """Print one line for each number of streams."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model", nargs="?")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=80)
    chosen = arguments.parse_args()
    if chosen.model:
        model, tokenizer, *_ = load(str(Path(chosen.model).resolve()))
        ends = set(tokenizer.eos_token_ids)
    else:
        model, tokenizer = random_model()
        ends = {tokenizer.eos_token_id}
    compiler = GrammarCompiler(tokenizer, lambda: ends)
    start = time.perf_counter()
    compiler.compile(Grammar.json_object())
    print(f"tokenizer read in {(time.perf_counter() - start) * 1e3:.0f} ms")
    start = time.perf_counter()
    grammar = compiler.compile(Grammar.json_schema(SCHEMA))
    print(f"schema compiled in {(time.perf_counter() - start) * 1e3:.1f} ms")
    for streams in (1, 8):
        rounds = []
        for _ in range(chosen.rounds):
            free = seconds_a_step(model, streams, chosen.tokens, None)
            rounds.append((free, seconds_a_step(model, streams, chosen.tokens, grammar)))
        free, held = (statistics.median(each[side][0] for each in rounds) * 1e3 for side in (0, 1))
        wall, cpu = (statistics.median(held[clock] / free[clock] for free, held in rounds) - 1 for clock in (0, 1))
        print(f"{streams} streams: {free:.2f} ms a step, {held:.2f} with the schema: {wall:+.1%}, CPU {cpu:+.1%}")


if __name__ == "__main__":
    main()
