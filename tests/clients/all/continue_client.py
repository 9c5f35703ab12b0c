"""Continue's command line: a tool round trip over chat completions."""

from coding_agents import QUESTION, address, ask_once, program

CONFIGURATION = f"""
name: local
version: 1.0.0
schema: v1
models:
  - name: mlxk
    provider: openai
    model: reads-by-continue
    apiBase: {address()}/v1
    apiKey: local
    capabilities: [tool_use]
"""

ask_once(
    [program("cn"), "--print", "--auto", "--config", "../home/local.yaml", QUESTION],
    {"CONTINUE_CLI_ENABLE_TELEMETRY": "0"},
    {"local.yaml": CONFIGURATION},
)
