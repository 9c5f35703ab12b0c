"""The examples at the end of each command's help: lines that can be typed as they stand."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "list": ("mlxk list", "mlxk list -a --health", "mlxk list 'qwen*'", "mlxk list ./"),
    "show": (
        "mlxk show demo",
        "mlxk show demo --files",
        "mlxk show demo --config --json",
        "mlxk show ORG/NAME --remote",
    ),
    "health": ("mlxk health", "mlxk health demo --deep"),
    "run": (
        'mlxk run demo "What is mlxk?"',
        "mlxk run demo",
        "mlxk run demo --keep",
        "mlxk run --continue",
        'mlxk run mlx-community/Llama-3.2-1B-Instruct-4bit "Hello" --pull',
        'mlxk run demo "Summarize this" < notes.txt',
        'mlxk run demo-vision "What color is it?" --image demo-vision/blue-square.jpg',
        "mlxk run demo-speech --audio demo-speech/hello.wav",
    ),
    "chats": ("mlxk chats", "mlxk chats rm NAME", "mlxk chats rm --all --yes"),
    "search": ("mlxk search llama 3b", "mlxk search qwen coder --mlx --limit 5"),
    "recommend": ("mlxk recommend", "mlxk recommend --for code", "mlxk recommend --for vision --online"),
    "pull": ("mlxk pull mlx-community/Llama-3.2-3B-Instruct-4bit", "mlxk pull ORG/NAME@REVISION --dry-run"),
    "outdated": ("mlxk outdated", "mlxk outdated llama --all"),
    "rm": ("mlxk rm ORG/NAME", "mlxk rm 'test-*' --dry-run", "mlxk rm ORG/NAME@REVISION -y"),
    "du": ("mlxk du", "mlxk du llama --revisions"),
    "prune": ("mlxk prune --dry-run", "mlxk prune", "mlxk prune llama --only partial --yes"),
    "clone": ("mlxk clone demo ./my-demo", "mlxk clone ORG/NAME@REVISION ./copy"),
    "convert": (
        "mlxk convert demo ./demo-8bit --quantize 8",
        "mlxk convert ./demo-8bit ./demo-full --dequantize",
        "mlxk convert ORG/NAME ./repaired --repair-index",
    ),
    "push": ("mlxk push ./my-demo ORG/NAME --check-only", "mlxk push ./my-demo ORG/NAME --create --private"),
    "serve": (
        "mlxk serve",
        "mlxk serve -m demo --port 8080",
        "mlxk serve --background",
        "mlxk serve --host 0.0.0.0 --api-key-file keys.txt",
    ),
    "launch": (
        "mlxk launch",
        "mlxk launch codex",
        'mlxk launch claude -m ORG/NAME -- -p "What does this project do?"',
        "mlxk launch zed --print",
    ),
    "ps": ("mlxk ps", "mlxk ps --json"),
    "stop": ("mlxk stop demo", "mlxk stop --all"),
    "logs": ("mlxk logs", "mlxk logs --follow"),
    "service": (
        "mlxk service install -- --port 8000 --model demo",
        "mlxk service install --print",
        "mlxk service status",
        "mlxk service uninstall",
    ),
    "embed": ('mlxk embed MODEL "a text"', "mlxk embed MODEL --json < texts.txt"),
    "embed-serve": ("mlxk embed-serve MODEL",),
    "alias": ("mlxk alias", "mlxk alias fast demo", "mlxk alias rm fast"),
    "profile": (
        'mlxk profile poet --model demo --system "You answer in rhymes." --temperature 0.9',
        "mlxk profile poet --unset temperature",
        "mlxk profile rm poet",
    ),
    "config": ("mlxk config", "mlxk config edit", "mlxk config show --for 'serve --port 9000'"),
    "schema": ("mlxk schema", "mlxk schema list"),
    "completion": ('eval "$(mlxk completion bash)"', 'eval "$(mlxk completion zsh)"', "mlxk completion fish | source"),
}
"""For each command, the simplest line first."""

TITLE = "examples:"


def epilog(command: str) -> str | None:
    """Return the end of a command's help; None for a command without examples."""
    lines = EXAMPLES.get(command)
    return "\n  ".join((TITLE, *lines)) if lines else None
