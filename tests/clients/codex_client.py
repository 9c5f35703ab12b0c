"""Codex: a tool round trip in two conversations, over the Responses API."""

import json

from coding_agents import QUESTION, address, ask_twice, program

PROVIDER = {
    "model_provider": '"mlxk"',
    "model_providers.mlxk.name": '"mlxk"',
    "model_providers.mlxk.base_url": json.dumps(f"{address()}/v1"),
    "model_providers.mlxk.wire_api": '"responses"',
    "model_providers.mlxk.request_max_retries": "0",
    "model_providers.mlxk.stream_max_retries": "0",
}


def cached_share(output: str) -> float:
    """Return the share of prompt tokens from the cache."""
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    commands = [event["item"] for event in events if event.get("item", {}).get("type") == "command_execution"]
    assert any(each.get("exit_code") == 0 and "heron" in each["aggregated_output"] for each in commands), commands
    assert not [event for event in events if event["type"] in {"error", "turn.failed"}], events
    [usage] = [event["usage"] for event in events if event["type"] == "turn.completed"]
    return float(usage["cached_input_tokens"] / usage["input_tokens"])


flags = [part for name, value in PROVIDER.items() for part in ("-c", f"{name}={value}")]
ask_twice(
    [
        program("codex"),
        "exec",
        "--skip-git-repo-check",
        "--json",
        "--dangerously-bypass-approvals-and-sandbox",
        *flags,
        "-m",
        "reads-by-shell",
        QUESTION,
    ],
    {},
    cached_share,
)
