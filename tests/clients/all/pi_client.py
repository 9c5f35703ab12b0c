"""pi: a tool round trip over chat completions."""

import json

from coding_agents import QUESTION, address, ask_once, program

MODELS = {
    "providers": {
        "mlxk": {
            "baseUrl": f"{address()}/v1",
            "api": "openai-completions",
            "apiKey": "local",
            "models": [{"id": "reads-by-pi", "contextWindow": 131072}],
        }
    }
}

output = ask_once(
    [program("pi"), "--print", "--mode", "json", "--offline", "--model", "mlxk/reads-by-pi", QUESTION],
    {"PI_TELEMETRY": "0"},
    {".pi/agent/models.json": json.dumps(MODELS)},
)
events = [json.loads(line) for line in output.splitlines()]
[end] = [event for event in events if event["type"] == "tool_execution_end"]
assert end["isError"] is False, end
