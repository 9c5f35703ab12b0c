"""Writes a llama of Hugging Face's layout, weights in float32, as a GGUF file for llama.cpp, in Q4_0.

    python benchmarks/as_gguf.py MODEL_FOLDER FILE [TYPE]

For ``cpu_servers.py``, and run by the Python that has llama.cpp: it needs ``gguf`` and ``safetensors``. Every matrix
has the same type, the embedding too, as in a model that MLX has quantized. TYPE is another type of GGUF, such as F32.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = ("token_embd", "output_norm")


def main(folder: Path, path: str, kind: GGMLQuantizationType) -> None:
    """Write the file."""
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config)
    for name, weight in load_file(folder / "model.safetensors").items():
        add_weight(writer, name, weight, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: GGUFWriter, folder: Path, config: dict[str, int]) -> None:
    """Write the vocabulary and the merges of a byte-level BPE."""
    document = json.loads((folder / "tokenizer.json").read_text())
    words = {number: text for text, number in document["model"]["vocab"].items()}
    kinds = dict.fromkeys(words, TokenType.NORMAL)
    for each in document["added_tokens"]:
        words[each["id"]] = each["content"]
        kinds[each["id"]] = TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
    numbers = range(config["vocab_size"])
    merges = (each if isinstance(each, str) else " ".join(each) for each in document["model"]["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words[number] for number in numbers])
    writer.add_token_types([kinds[number] for number in numbers])
    writer.add_token_merges(list(merges))
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def add_weight(
    writer: GGUFWriter, name: str, weight: np.ndarray, config: dict[str, int], kind: GGMLQuantizationType
) -> None:
    """Write one weight, quantized if it is a matrix."""
    parts = name.split(".")
    part = ".".join(parts[3:-1])
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(part)
    if heads is not None:  # llama.cpp rotates neighbouring numbers, and Hugging Face's layout the two halves of a head
        halves = weight.reshape(config[heads], 2, config["head_dim"] // 2, weight.shape[1])
        weight = halves.swapaxes(1, 2).reshape(weight.shape)
    short = f"blk.{parts[2]}.{NAMES[part]}" if part else ENDS[parts[1] == "norm"]
    if weight.ndim == 1:
        writer.add_tensor(f"{short}.weight", weight)
    else:
        packed = gguf.quants.quantize(np.ascontiguousarray(weight), kind)
        writer.add_tensor(f"{short}.weight", packed, raw_dtype=kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], GGMLQuantizationType[sys.argv[3] if len(sys.argv) > 3 else "Q4_0"])
