"""Tiny rerankers with random weights: a cross-encoder of each kind, and a decoder that answers yes or no."""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from models.tiny_embedding import qwen3_config, save
from models.tiny_vision import build as build_vision
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlxk.domain.models.model import ModelHandle, Origin

WINDOW = 48
WORDS = "a man is eating food and piece of bread the girl carrying baby cheetah runs behind its prey hello world"
QUERY = "a man is eating"
DOCUMENTS = (
    "bread",
    "a cheetah runs behind its prey",
    "the girl is carrying the baby and the bread and a piece of food and a piece of bread",
    "hello",
)
SPREAD = 0.4
"""Of the weights."""

CROSS_ENCODERS = ("bert", "xlm-roberta", "modernbert")

QWEN_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- for part in message.content -%}{%- if part.type == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""As that of Qwen3-VL has messages of parts."""

_SPECIAL = {
    "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    "modernbert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    "xlm-roberta": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
}
_PAIRS = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "modernbert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "xlm-roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
}


def build_cross_encoder(directory: Path, kind: str, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a classifier of two layers with one output.

    Args:
        directory: Where; made if need be.
        kind: One of ``CROSS_ENCODERS``.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    module = importlib.import_module(f"mlx_vlm.models.{kind.replace('-', '_')}")
    tokenizer = _word_pieces(kind)
    padding = tokenizer.token_to_id(_SPECIAL[kind]["pad_token"])
    names = {"bert": "Bert", "modernbert": "ModernBert", "xlm-roberta": "XLMRoberta"}
    settings: dict[str, Any] = {
        "model_type": kind,
        "architectures": [f"{names[kind]}ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": WINDOW + (padding + 1 if kind == "xlm-roberta" else 0),
        "pad_token_id": padding,
        **({"layer_norm_eps": 1e-12, "type_vocab_size": 2 if kind == "bert" else 1} if kind != "modernbert" else {}),
        **({"local_attention": 8, "global_attn_every_n_layers": 2} if kind == "modernbert" else {}),
        **config,
    }
    mx.random.seed(seed)
    save(directory, module.SequenceClassificationModel(module.ModelConfig.from_dict(settings)), settings, SPREAD)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL[kind], "model_max_length": WINDOW})
    )
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_answering(directory: Path, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a Qwen3 of two layers whose vocabulary has ``yes`` and ``no``."""
    from mlx_lm.models.qwen3 import Model, ModelArgs

    tokenizer = _byte_pairs()
    settings = {**qwen3_config(tokenizer, 512), **config}
    mx.random.seed(seed)
    save(directory, Model(ModelArgs.from_dict(settings)), settings, SPREAD)
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_picturing(directory: Path, seed: int = 0) -> ModelHandle:
    """Write a Qwen3-VL of two layers whose vocabulary has ``yes`` and ``no``."""
    handle = build_vision(directory, "qwen3_vl", seed, words=("yes", "no"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": QWEN_TEMPLATE}))
    return handle


@functools.cache
def _word_pieces(kind: str) -> Tokenizer:
    marks = _SPECIAL[kind]
    tokenizer = Tokenizer(models.WordPiece(unk_token=marks["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # The padding of RoBERTa is its second token, from which its positions are counted.
    order = sorted(marks.values(), key=lambda each: (each != "<s>", "pad" not in each.lower()))
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=order, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    single, pair = _PAIRS[kind]
    ids = [(name, tokenizer.token_to_id(name)) for name in marks.values()]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer


@functools.cache
def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{WORDS} yes no", "yes", "no"] * 9, trainer)
    return tokenizer
