"""A chat whose context window is full: it asks what to forget, says it, and goes on."""

import json
from pathlib import Path

import pexpect
import pytest
from chatting import PROMPT, end, say, start
from models.scripted_model import write_model
from models.tiny_models import TEMPLATE

pytestmark = pytest.mark.e2e

WINDOW = 700
LONG = "word " * 25
OFFER = "leave the message? [d/s/N]: "


def fill(terminal: "pexpect.spawn[str]") -> str:
    """Send messages until one does not fit; return what stands before the question."""
    for _ in range(8):
        terminal.sendline(LONG)
        if terminal.expect_exact(["I hear you.", OFFER]) == 1:
            return terminal.before
        terminal.expect_exact(PROMPT)
    raise AssertionError("the window was never full")


def test_a_full_window_offers_to_drop_or_to_summarize_and_never_ends_the_chat(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    replies = {"Summarize the conversation below": "Ann likes tea."}
    write_model(
        tmp_path / "small",
        TEMPLATE,
        "I hear you.",
        replies,
        context=WINDOW,
        special=("<|im_start|>",),
        end="<|im_end|>",
    )
    terminal = start(program_environment, tmp_path, "run", "./small")
    asked = fill(terminal)
    assert f"small' holds {WINDOW}." in asked
    assert "(d)rop the " in asked
    say(terminal, "", "the message is not sent; /drop, /summarize and /clear make room")
    say(terminal, "/show", "turns: 4")
    fill(terminal)
    terminal.sendline("d")
    terminal.expect(r"dropped the (oldest turn|\d oldest turns); the model knows \d turns? before this one")
    terminal.expect_exact("I hear you.")
    terminal.expect_exact(PROMPT)
    terminal.sendline("/show")
    terminal.expect(r"turns: \d, and \d dropped")
    fill(terminal)
    terminal.sendline("s")
    terminal.expect_exact("Ann likes tea.")
    terminal.expect(r"summarized the .*, as above; the model gets the summary in place of them")
    terminal.expect_exact("I hear you.")
    terminal.expect_exact(PROMPT)
    say(terminal, "/show", "summary: Ann likes tea.")
    say(terminal, "/save talk.json", "saved to talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["summary"] == "Ann likes tea."
    assert len(saved["earlier"]) + len(saved["messages"]) == 14
    say(terminal, LONG * 6, "The message alone does not fit.")
    say(terminal, "/drop 99", "to drop (got 99)")
    for command in ("/drop", "/summarize"):
        say(terminal, f"{command} {'9' * 5000}", "the number of turns is too large")
    say(terminal, "/drop one", "must be a whole number (got 'one')")
    say(terminal, "/clear", "forgotten")
    say(terminal, "/load talk.json", "loaded ")
    say(terminal, "/compact", "Ann likes tea.")
    say(terminal, "/show", "turns: 0, and 7 dropped")
    say(terminal, "hi", "I hear you.")
    say(terminal, "/stats", "of 700 tokens")
    end(terminal)
