"""Claude Code: a tool round trip in two conversations, over the Messages API."""

import json

from coding_agents import QUESTION, address, ask_twice, program


def cached_share(output: str) -> float:
    """Return the share of prompt tokens from the cache."""
    result = json.loads(output)
    assert (result["subtype"], result["is_error"], result["num_turns"]) == ("success", False, 2), result
    usage = result["usage"]
    cached = usage["cache_read_input_tokens"]
    return float(cached / (cached + usage["input_tokens"] + usage["cache_creation_input_tokens"]))


ask_twice(
    [
        program("claude"),
        "-p",
        "--output-format",
        "json",
        "--model",
        "reads-by-bash",
        "--allowedTools",
        "Bash,Read",
        "--",
        QUESTION,
    ],
    {
        "ANTHROPIC_BASE_URL": address(),
        "ANTHROPIC_AUTH_TOKEN": "local",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",
    },
    cached_share,
)
