"""A tiny Llama that says what it is told: greedy, one reply by default, others when a mark stands in the context.

    write_model(folder, template, "<tool_call>…</tool_call>", {"@@RESULT@@": "It is sunny."}, end="<|im_end|>")

Every reply is cut into pieces that are tokens of their own, which no prompt can hold, since the tokenizer merges
nothing, or nothing to them. The embedding of a token is one dimension of its own and one that all share. The output
layer leads from each piece to the next one. The only attention head looks for marks: the later one in the list of
replies scores higher, and its value points to the first piece of its reply.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HEAD = 64
"""Dimensions of the attention head."""
SLOWEST = HEAD // 2 - 1
"""The dimension that the rotary embedding hardly turns."""
MARK_SCORE = 40.0
"""By how much the attention to a mark exceeds that to the mark before it, and to all other tokens."""
CHAIN, CHOSEN, DEFAULT = 1e4, 10.0, 1.0
"""Weights of the next piece, of the reply that a mark chooses, and of the first reply."""
SIZES = (5, 4, 6, 3, 7, 8, 9, 10, 11, 12)
"""Characters of a piece, the preferred ones first."""


def write_model(
    folder: Path,
    template: str,
    reply: str,
    replies: Mapping[str, str] | None = None,
    *,
    end: str = "<|im_end|>",
    special: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
    context: int = 16384,
    ended: bool = True,
    corpus: str = "",
    **tokenizer_config: Any,
) -> None:
    """Write the model.

    Args:
        folder: Where to.
        template: The chat template.
        reply: What it says by default.
        replies: What it says instead, by the mark that the context holds; the last one that holds counts.
        end: The token after a reply.
        special: Further special tokens.
        added: Further tokens of the vocabulary, not special.
        context: Tokens of the context window.
        ended: Whether the config names the end token.
        corpus: Text that merges are learned from, which make long prompts of such text several times shorter.
        tokenizer_config: Further fields of ``tokenizer_config.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marks = list(replies or {})
    alphabet = _bytes()
    vocabulary = {character: index for index, character in enumerate(sorted(alphabet.values()))}
    merges: list[tuple[str, str]] = []
    if corpus:
        vocabulary, merges = _learned(corpus, sorted(alphabet.values()))
    chains = []
    for text in (reply, *(replies or {}).values()):
        pieces = _pieces(text, alphabet, vocabulary)
        for piece in pieces:
            vocabulary[piece] = len(vocabulary)
        chains.append([vocabulary[piece] for piece in pieces])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(corpus))
    tokenizer.decoder = decoders.ByteLevel()
    names = dict.fromkeys(each for each in (end, *special) if each)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in names])
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in (*added, *marks)])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(mark) for mark in marks]
    end_id = tokenizer.token_to_id(end)
    width = _save_weights(folder, tokenizer.get_vocab_size(), chains, ids, end_id)
    _save_config(folder, tokenizer.get_vocab_size(), width, context, end_id if ended else vocabulary["!"])
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end if ended else "!"}
    described |= {"chat_template": template, **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "README.md").write_text("---\nlibrary_name: mlx\npipeline_tag: text-generation\n---\n")


def _save_config(folder: Path, size: int, width: int, context: int, end: int) -> None:
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e10,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _learned(corpus: str, alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges of a text."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([corpus], trainer)
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [(first, second) for first, second in learned["merges"]]


def _bytes() -> dict[int, str]:
    """Return the character that stands for each byte in a vocabulary of bytes."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _pieces(text: str, alphabet: dict[int, str], known: Mapping[str, int]) -> list[str]:
    """Cut a text into pieces of several characters, each different from all others."""
    pieces: list[str] = []
    place = 0
    while place < len(text):
        left = len(text) - place
        for size in (*SIZES, left):
            piece = "".join(alphabet[byte] for byte in text[place : place + size].encode())
            rest = left - size
            if 1 < size <= left and rest != 1 and piece not in known and piece not in pieces:
                break
        else:
            raise ValueError(f"no piece of its own at {text[place : place + 20]!r}; put other words there")
        pieces.append(piece)
        place += size
    return pieces


def _save_weights(folder: Path, size: int, chains: list[list[int]], marks: list[int], end: int) -> int:
    """Write the weights; return the hidden size."""
    width = -(-(size + len(marks) + 1) // HEAD) * HEAD
    shared, flags = width - 1, size
    embedding = np.zeros((size, width), np.float32)
    embedding[np.arange(size), np.arange(size)] = 1
    embedding[:, shared] = 1
    gain = (width / 2) ** 0.5
    query, key = np.zeros((HEAD, width), np.float32), np.zeros((HEAD, width), np.float32)
    value, output = np.zeros((HEAD, width), np.float32), np.zeros((width, HEAD), np.float32)
    query[SLOWEST, shared] = 1 / gain
    for index, mark in enumerate(marks):
        key[SLOWEST, mark] = MARK_SCORE * (index + 1) * HEAD**0.5 / gain
        value[index, mark] = 1 / gain
        output[flags + index, index] = 1
    head = np.zeros((size, width), np.float32)
    for index, chain in enumerate(chains):
        for piece, following in zip(chain, [*chain[1:], end], strict=True):
            head[following, piece] = CHAIN
        head[chain[0], shared if index == 0 else flags + index - 1] = DEFAULT if index == 0 else CHOSEN
    layer = "model.layers.0."
    ones, small = np.ones(width, np.float32), np.zeros((8, width), np.float32)
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": ones,
        "lm_head.weight": head,
        f"{layer}input_layernorm.weight": ones.copy(),
        f"{layer}post_attention_layernorm.weight": ones.copy(),
        f"{layer}self_attn.q_proj.weight": query,
        f"{layer}self_attn.k_proj.weight": key,
        f"{layer}self_attn.v_proj.weight": value,
        f"{layer}self_attn.o_proj.weight": output,
        f"{layer}mlp.gate_proj.weight": small,
        f"{layer}mlp.up_proj.weight": small.copy(),
        f"{layer}mlp.down_proj.weight": np.zeros((width, 8), np.float32),
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "mlx"})
    return width
