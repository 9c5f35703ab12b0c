"""Codex: a tool round trip in two conversations, over the Responses API."""

import json

from coding_agents import QUESTION, ask_twice, codex_command, codex_provider


def cached_share(output: str) -> float:
    """Return the share of prompt tokens from the cache."""
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    commands = [event["item"] for event in events if event.get("item", {}).get("type") == "command_execution"]
    assert any(each.get("exit_code") == 0 and "heron" in each["aggregated_output"] for each in commands), commands
    assert not [event for event in events if event["type"] in {"error", "turn.failed"}], events
    [usage] = [event["usage"] for event in events if event["type"] == "turn.completed"]
    return float(usage["cached_input_tokens"] / usage["input_tokens"])


ask_twice(codex_command(["-m", "reads-by-shell", QUESTION], codex_provider()), {}, cached_share)
