"""Codex with its names for local servers: it looks for the model, loads it, then has a tool round trip."""

import json

from coding_agents import QUESTION, address, ask_once, codex_command


def ask(provider: str, model: str) -> None:
    """Have Codex read the note by way of a provider's name, from a model as that provider lists it."""
    output = ask_once(
        codex_command(["--oss", "--local-provider", provider, "--model", model, QUESTION]),
        {"CODEX_OSS_BASE_URL": f"{address()}/v1"},
    )
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert not [event for event in events if event["type"] in {"error", "turn.failed"}], events
