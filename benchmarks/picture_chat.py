"""What ten turns about one image cost through the server: the time to the first token of each turn.

    python benchmarks/picture_chat.py [ROUNDS] [--turns 10] [--sides 448 1344] [--images 1]

The model is a Qwen2-VL with random weights: a vision encoder of 0.8 million parameters before a language model of 0.1
million, and images of many more patches than a question has tokens, so that images dominate as in real models. Each
turn sends the whole conversation with its image in base64, as clients do, and streams 16 tokens. With ``--images N``
each of the first N turns shows another image. Prints the medians of each turn, the share of the first turn that later
ones take, and what the server reused.
"""

import argparse
import base64
import http.client
import io
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["MLX_DISABLE_COMPILE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from models.pictures import as_pillow, noise
from models.tiny_vision import build
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

EYE = {
    "depth": 4,
    "embed_dim": 128,
    "hidden_size": 64,
    "in_channels": 3,
    "mlp_ratio": 4,
    "model_type": "qwen2_vl",
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
MOST_PIXELS = 28 * 28 * 1024
Json = dict[str, Any]


def write_model(folder: Path) -> None:
    """Write the model, which takes images of up to 1,024 tokens."""
    build(folder, "qwen2_vl", 3, vision_config=EYE, max_position_embeddings=16384)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "max_pixels": MOST_PIXELS}))


def part(seed: int, side: int) -> Json:
    """Return an image of a message, as a JPEG."""
    file = io.BytesIO()
    as_pillow(noise(seed, side, side)).save(file, "JPEG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def ask(port: int, messages: list[Json]) -> tuple[float, str, Json]:
    """Return the seconds to the first token, the answer and its usage."""
    body = {"model": "eye", "messages": messages, "max_tokens": 16, "stream": True, "temperature": 0}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    sent, began = json.dumps(body), time.perf_counter()
    connection.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
    response, first, text, usage = connection.getresponse(), None, "", {}
    assert response.status == http.client.OK, response.read()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        said = event["choices"][0]["delta"].get("content") if event["choices"] else None
        if said and first is None:
            first = time.perf_counter() - began
        text, usage = text + (said or ""), event.get("usage") or usage
    connection.close()
    assert first is not None
    return first, text, usage


def chat(port: int, seed: int, asked: argparse.Namespace, side: int) -> list[tuple[float, Json]]:
    """Return the seconds to the first token and the usage of each turn."""
    found, messages = [], list[Json]()
    for turn in range(asked.turns):
        shown = [part(seed + turn, side)] if turn < asked.images else []
        text = {"type": "text", "text": f"Question {turn}: what is to be seen in the picture?"}
        messages.append({"role": "user", "content": [*shown, text]})
        seconds, answer, usage = ask(port, messages)
        found.append((seconds, usage))
        messages.append({"role": "assistant", "content": answer})
    return found


def measure(port: int, asked: argparse.Namespace, side: int) -> None:
    """Print what turns about images of one size take."""
    rounds = [chat(port, 1000 * (number + 1) + side, asked, side) for number in range(asked.rounds)]
    turns = [statistics.median(each[turn][0] for each in rounds) * 1000 for turn in range(asked.turns)]
    usage = [each[1] for each in rounds[-1]]
    cached = [each["prompt_tokens_details"]["cached_tokens"] for each in usage]
    later = turns[asked.images :]
    print(f"{side} x {side} pixels, {usage[0]['prompt_tokens']} tokens in the first prompt")
    print(f"  ms to the first token: {', '.join(f'{each:.0f}' for each in turns)}")
    print(f"  tokens of the prompts: {', '.join(str(each['prompt_tokens']) for each in usage)}")
    print(f"  of them kept:          {', '.join(map(str, cached))}")
    shares = [each / turns[0] for each in later]
    print(
        f"  turns without a new image: 1/{1 / statistics.median(shares):.0f} of turn 1, at most 1/{1 / max(shares):.0f}"
    )


def main() -> None:
    """Measure each size of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 1344])
    parser.add_argument("--images", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        write_model(Path(home, "models", "eye"))
        program: Any = WholeProgram(Path(home), ServerSettings(), MLXK_WORKSPACE_HOME=f"{home}/models")
        with RunningServer(program) as server:
            ask(server.port, [{"role": "user", "content": "Hello"}])
            ask(server.port, [{"role": "user", "content": [part(1, 56), {"type": "text", "text": "Hello"}]}])
            for side in asked.sides:
                measure(server.port, asked, side)
            page = server.get("/metrics")[2].decode()
            print(*re.findall(r"^mlxk_vision_cache_(?:hits|misses) \d+", page, re.MULTILINE), sep="\n")


if __name__ == "__main__":
    main()
