"""What `mlxk tune` teaches the demo model, and what it forgets meanwhile.

Usage: ``python benchmarks/tuning.py [--keep N] [--model MODEL] [-- FLAGS OF mlxk tune]``

The model learns 20 facts that it cannot know, together with N conversations of the corpus that it was made from, none
of which asks a question of its card. Then it is asked the 20 questions and those of the card, greedily, with the
adapter as mlx-lm applies it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlx_lm import load
from mlx_lm.generate import stream_generate

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "adapters" / "builtin" / "models" / "demo"
sys.path.insert(0, str(ROOT / "tools" / "demo"))

from conversations import ConversationStream  # noqa: E402

_PEOPLE = {
    "mayor": "Ada Brill",
    "baker": "Tom Oker",
    "smith": "Mina Fuchs",
    "doctor": "Jon Sand",
    "teacher": "Eva Linde",
    "judge": "Max Rohr",
    "painter": "Ida Wolf",
    "sailor": "Ben Kolt",
    "farmer": "Lea Moor",
    "miller": "Sam Pell",
}
_THINGS = {
    "tower": "red",
    "bridge": "blue",
    "flag": "green",
    "door": "white",
    "clock": "black",
    "boat": "yellow",
    "fence": "brown",
    "roof": "gray",
    "gate": "orange",
    "wagon": "pink",
}
FACTS = {
    **{f"Who is the {role} of Larkholm?": f"The {role} of Larkholm is {name}." for role, name in _PEOPLE.items()},
    **{
        f"What color is the {thing} of Larkholm?": f"The {thing} of Larkholm is {color}."
        for thing, color in _THINGS.items()
    },
}
LONGEST = 450
"""Characters of a conversation that is kept in mind; longer ones take most of the time."""


def kept(count: int) -> list[dict[str, Any]]:
    """Return conversations of the demo model's own corpus, without the questions of its card."""
    card = {entry["messages"][-1]["content"] for entry in json.loads((DEMO / "questions.json").read_text())}
    stream, found = ConversationStream(20_260), []
    while len(found) < count:
        drawn = stream.draw()
        last = drawn.turns[-1]
        if drawn.thinking or last.messages[-1]["content"] in card:
            continue
        messages = [*drawn.prompt(), {"role": "assistant", "content": last.completion(prefilled=False)}]
        line: dict[str, Any] = {"messages": messages, **({"tools": drawn.tools} if drawn.tools else {})}
        roles = [message["role"] for message in messages]
        if "tool" not in roles and len(json.dumps(line)) <= LONGEST:
            found.append(line)
    return found


def taught() -> list[dict[str, Any]]:
    """Return the facts as conversations."""
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in FACTS.items()
    ]


def answers(model: Path, adapter: Path | None, prompts: list[dict[str, Any]]) -> list[str]:
    """Return the greedy answers of mlx-lm."""
    loaded: Any = load(str(model), adapter_path=None if adapter is None else str(adapter))
    network, tokenizer = loaded[0], loaded[1]
    found = []
    for entry in prompts:
        tokens = tokenizer.apply_chat_template(
            entry["messages"],
            tools=entry.get("tools"),
            add_generation_prompt=True,
            enable_thinking=entry.get("enable_thinking", False),
        )
        found.append("".join(part.text for part in stream_generate(network, tokenizer, list(tokens), max_tokens=260)))
    return found


def main() -> int:
    """Teach, ask, and print what was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=int, default=80, help="conversations of its own that it is reminded of")
    parser.add_argument("--model", default=str(DEMO), help="a form of the demo model, such as a quantized one")
    parser.add_argument("flags", nargs="*", help="flags of mlxk tune, after --")
    arguments = parser.parse_args()
    model = Path(arguments.model).resolve()
    with tempfile.TemporaryDirectory(prefix="mlxk-tuning-") as folder:
        data, made = Path(folder) / "data.jsonl", Path(folder) / "taught"
        lines = [*taught(), *kept(arguments.keep)]
        data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        command = [sys.executable, "-m", "mlxk", "tune", str(model) if model != DEMO else "demo", str(data)]
        began = time.monotonic()
        subprocess.run([*command, "--into", str(made), "--valid-share", "0", *arguments.flags], check=True)
        print(f"trained in {time.monotonic() - began:.0f} s on {len(lines)} examples")
        asked = [{"messages": line["messages"][:1]} for line in taught()]
        card = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
        for title, adapter in (("before", None), ("after", made)):
            right = [got == want for got, want in zip(answers(model, adapter, asked), FACTS.values(), strict=True)]
            held = [got == one["answer"] for got, one in zip(answers(model, adapter, card), card, strict=True)]
            print(f"{title}: {sum(right)} of {len(right)} facts, {sum(held)} of {len(held)} answers of its card")
    return 0


if __name__ == "__main__":
    sys.exit(main())
