"""Asks the trained model every question it is meant to answer and counts the exact answers.

Usage: ``python tools/demo/check.py [MODEL] [--corpus]``

Without ``--corpus`` only the questions of the card are asked, each alone and all again in batches of
eight. With it the whole corpus, conversations and the held-out unknown questions follow. The exit
status is 1 when an answer of the card differs or too many of the corpus do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unknown
from conversations import Conversation, ConversationStream, known_items
from examples import Encoder
from mlx_lm import batch_generate, load
from mlx_lm.generate import stream_generate
from turns import asked

BATCH = 8
LIMIT = 260
UNSEEN_SEED = 990_001
REQUIRED = {"card alone": 1.0, "card in batches": 1.0, "corpus": 0.97}
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "adapters" / "builtin" / "models" / "demo"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the exact answer expected, and how to name it in a report."""

    prompt: list[int]
    answer: str
    title: str


class Examination:
    """Asks questions of one loaded model."""

    def __init__(self, directory: Path) -> None:
        """Load the model as mlx-lm serves it."""
        loaded: Any = load(str(directory))
        self._model, self._tokenizer = loaded[0], loaded[1]
        self._encoder = Encoder(self._tokenizer)
        self._entries = json.loads((directory / "questions.json").read_text(encoding="utf-8"))

    def card(self) -> list[Question]:
        """Return the questions of the card."""
        return [self._from_entry(entry) for entry in self._entries]

    def corpus(self) -> list[Question]:
        """Return every known question as written, in lower case, and without its end mark."""
        pairs = {
            (text, item.answer)
            for item in known_items()
            for written in item.questions
            for text in (written, written.lower(), written.rstrip(".!?"))
        }
        return [self._from_conversation(Conversation([asked(text, answer, "")])) for text, answer in sorted(pairs)]

    def conversations(self, count: int) -> list[Question]:
        """Return conversations that were not trained: history, tools, system prompts, thinking."""
        stream = ConversationStream(UNSEEN_SEED)
        return [self._from_conversation(stream.draw()) for _ in range(count)]

    def held_out(self) -> list[Question]:
        """Return the unknown questions that are never drawn for training."""
        return [self._from_conversation(Conversation([asked(text, unknown.ANSWER, "")])) for text in unknown.HELD_OUT]

    def alone(self, questions: Iterable[Question]) -> list[str]:
        """Return the greedy answers, one question at a time."""
        return [
            "".join(part.text for part in stream_generate(self._model, self._tokenizer, one.prompt, max_tokens=LIMIT))
            for one in questions
        ]

    def in_batches(self, questions: list[Question]) -> list[str]:
        """Return the greedy answers, eight questions at a time."""
        prompts = [one.prompt for one in questions]
        answer: Any = batch_generate(
            self._model,
            self._tokenizer,
            prompts,
            max_tokens=LIMIT,
            completion_batch_size=BATCH,
            prefill_batch_size=BATCH,
        )
        return list(answer.texts)

    def _from_entry(self, entry: dict[str, Any]) -> Question:
        prompt = self._tokenizer.apply_chat_template(
            entry["messages"],
            tools=entry.get("tools"),
            add_generation_prompt=True,
            enable_thinking=entry.get("enable_thinking", False),
        )
        return Question(list(prompt), entry["answer"], str(entry["messages"][-1]["content"]))

    def _from_conversation(self, conversation: Conversation) -> Question:
        last = conversation.turns[-1]
        answer = last.completion(prefilled=conversation.thinking)
        return Question(self._encoder.prompt(conversation), answer, str(last.messages[-1]["content"]))


def report(title: str, questions: list[Question], answers: list[str]) -> bool:
    """Print the mismatches and the share of exact answers; return whether it suffices."""
    wrong = [(one, got) for one, got in zip(questions, answers, strict=True) if one.answer != got]
    for one, got in wrong:
        print(f"  {one.title!r}\n    expected {one.answer!r}\n    got      {got!r}")
    share = 1 - len(wrong) / len(questions)
    print(f"{title}: {len(questions) - len(wrong)} of {len(questions)} exact ({share:.1%})")
    return share >= REQUIRED.get(title, 0.0)


def main() -> int:
    """Run the examination and return the exit status."""
    parser = argparse.ArgumentParser(description="Check the answers of the built-in demo model.")
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, help="directory of the model")
    parser.add_argument("--corpus", action="store_true", help="ask the whole corpus, too")
    arguments = parser.parse_args()
    examination = Examination(arguments.model)
    card = examination.card()
    passed = [
        report("card alone", card, examination.alone(card)),
        report("card in batches", card, examination.in_batches(card)),
    ]
    if arguments.corpus:
        for title, questions in (
            ("corpus", examination.corpus()),
            ("conversations", examination.conversations(600)),
            ("held-out unknown questions", examination.held_out()),
        ):
            passed.append(report(title, questions, examination.in_batches(questions)))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
