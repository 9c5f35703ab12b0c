"""aider: a plain answer over chat completions; it has no tools, so the note goes with the question."""

import json

from coding_agents import address, ask_once, program

MODEL = "openai/reads-by-shell"
METADATA = {MODEL: {"max_input_tokens": 131072, "max_tokens": 8192, "litellm_provider": "openai", "mode": "chat"}}

ask_once(
    [
        program("aider"),
        *("--model", MODEL),
        *("--model-metadata-file", "../home/metadata.json"),
        *("--edit-format", "ask"),
        *("--message", "What is the note about?"),
        *("--read", "note.txt"),
        "--no-git",
        "--no-pretty",
        "--no-check-update",
        "--no-show-release-notes",
        "--no-show-model-warnings",
        "--analytics-disable",
        "--yes-always",
    ],
    {"OPENAI_API_BASE": f"{address()}/v1", "OPENAI_API_KEY": "local", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    {"metadata.json": json.dumps(METADATA)},
)
