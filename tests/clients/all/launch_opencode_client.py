"""``mlxk launch``: a tool round trip of opencode, on a server of its own.

opencode itself writes ``$schema`` into a file of settings that has none, and packages into npm's cache.
"""

from coding_agents import QUESTION, ask_launched

ask_launched(
    "opencode",
    "reads-by-opencode",
    ["run", "--format", "json", QUESTION],
    {".config/opencode/opencode.json": '{"$schema": "https://opencode.ai/config.json", "model": "mine/mine"}\n'},
    [".config/opencode/", ".local/share/opencode/", ".local/state/opencode/", ".cache/opencode/", ".npm/"],
)
