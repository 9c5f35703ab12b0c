"""Cline's command line: a tool round trip over chat completions."""

import json

from coding_agents import QUESTION, SAID, address, ask_once, program

CLINE = program("cline")

output = ask_once(
    [CLINE, "--json", QUESTION],
    # Otherwise it leaves a process running that serves its editors.
    {"CLINE_SESSION_BACKEND_MODE": "local", "CLINE_NO_AUTO_UPDATE": "1", "DO_NOT_TRACK": "1"},
    before=[
        CLINE,
        "auth",
        *("--provider", "openai-compatible"),
        *("--baseurl", f"{address()}/v1"),
        *("--apikey", "local"),
        *("--modelid", "reads-by-cline"),
    ],
)
[result] = [event for event in map(json.loads, output.splitlines()) if event["type"] == "run_result"]
assert (result["finishReason"], result["text"]) == ("completed", SAID), result
