"""qwen-code: a tool round trip over chat completions."""

import json

from coding_agents import QUESTION, SAID, address, ask_once, program

SETTINGS = {
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "security": {"auth": {"selectedType": "openai"}},
}

output = ask_once(
    [program("qwen"), "--model", "reads-by-qwen-code", "--yolo", "--output-format", "json", QUESTION],
    {
        "OPENAI_BASE_URL": f"{address()}/v1",
        "OPENAI_API_KEY": "local",
        "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
    },
    {".qwen/settings.json": json.dumps(SETTINGS)},
)
result = json.loads(output)[-1]
assert (result["subtype"], result["is_error"], result["result"]) == ("success", False, SAID), result
