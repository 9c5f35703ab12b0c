"""opencode: a tool round trip over chat completions; it asks for a title of the conversation first."""

import json

from coding_agents import QUESTION, address, ask_once, program

CONFIGURATION = {
    "$schema": "https://opencode.ai/config.json",
    "autoupdate": False,
    "share": "disabled",
    "provider": {
        "mlxk": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "mlxk",
            "options": {"baseURL": f"{address()}/v1"},
            "models": {"reads-by-opencode": {"limit": {"context": 131072, "output": 8192}}},
        }
    },
}

output = ask_once(
    [program("opencode"), "run", "--format", "json", "--model", "mlxk/reads-by-opencode", QUESTION],
    {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"},
    {".config/opencode/opencode.json": json.dumps(CONFIGURATION)},
)
events = [json.loads(line) for line in output.splitlines()]
[call] = [event["part"] for event in events if event["type"] == "tool_use"]
assert call["state"]["status"] == "completed", call
