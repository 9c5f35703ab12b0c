"""``mlxk launch``: a tool round trip of Codex and of Claude Code, each on a server of its own.

The log of that server is all that mlxk leaves.
"""

from coding_agents import QUESTION, ask_launched

ask_launched(
    "codex",
    "reads-by-shell",
    ["exec", "--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox", QUESTION],
    {".codex/config.toml": 'model = "mine"\n[model_providers.mine]\nname = "mine"\n'},
    [".codex/", ".local/state/mlxk/logs/launch-codex.log"],
)
ask_launched(
    "claude",
    "reads-by-bash",
    ["-p", "--output-format", "json", "--allowedTools", "Bash,Read", "--", QUESTION],
    {".claude/settings.json": '{"model": "mine"}\n'},
    [".claude/", ".claude.json", ".local/state/mlxk/logs/launch-claude.log"],
)
