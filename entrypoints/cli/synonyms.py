"""Commands and flags that users know from similar programs, with their counterparts in mlxk."""

from collections.abc import Mapping

COMMAND_SYNONYMS: Mapping[str, str] = {
    "agent": "launch",
    "aliases": "alias",
    "ask": "run",
    "benchmark": "bench",
    "cache": "du",
    "chat": "run",
    "check": "health",
    "claude": "launch",
    "codex": "launch",
    "configure": "config",
    "copy": "clone",
    "cp": "clone",
    "create": "profile",
    "del": "rm",
    "delete": "rm",
    "delete-cache": "rm",
    "diagnose": "doctor",
    "download": "pull",
    "env": "doctor",
    "find": "search",
    "generate": "run",
    "get": "pull",
    "info": "show",
    "inspect": "show",
    "install": "pull",
    "load": "serve",
    "log": "logs",
    "models": "list",
    "opencode": "launch",
    "preset": "profile",
    "publish": "push",
    "quantize": "convert",
    "scan-cache": "du",
    "set": "config",
    "settings": "config",
    "start": "serve",
    "status": "ps",
    "suggest": "recommend",
    "uninstall": "rm",
    "unload": "stop",
    "upload": "push",
    "verify": "health",
}
"""The command here for each command of similar programs."""

FLAG_SYNONYMS: Mapping[str, str] = {
    "--adapter-path": "--adapter",
    "--allowed-origins": "--cors-origin",
    "--cache-type-k": "--kv-bits",
    "--cache-type-v": "--kv-bits",
    "--decode-concurrency": "--max-streams",
    "--draft": "--draft-tokens",
    "--draft-max": "--draft-tokens",
    "--enable-lora": "--adapter",
    "--kv-cache-dtype": "--kv-bits",
    "--lora": "--adapter",
    "--lora-modules": "--adapter",
    "--max-concurrent-requests": "--max-streams",
    "--max-logprobs": "--top-logprobs-k",
    "--max-num-seqs": "--max-streams",
    "--model-draft": "--draft-model",
    "--model-path": "--model",
    "--n-predict": "--max-tokens",
    "--num-draft-tokens": "--draft-tokens",
    "--num-predict": "--max-tokens",
    "--parallel": "--max-streams",
    "--pipeline-parallel-size": "--local-ranks",
    "--prompt-cache-dir": "--prefix-cache-dir",
    "--reasoning-budget": "--thinking-budget",
    "--schema": "--json-schema",
    "--served-model-name": "--alias",
    "--slot-save-path": "--prefix-cache-dir",
    "--speculative-model": "--draft-model",
    "--stats": "--verbose",
    "--tensor-parallel-size": "--local-ranks",
    "--think": "--thinking",
    "-a": "--alias",
    "-ctk": "--kv-bits",
    "-ctv": "--kv-bits",
    "-n": "--max-tokens",
    "-np": "--max-streams",
    "-t": "--temperature",
    "-tp": "--local-ranks",
}
"""The closest flag here for each flag of similar programs."""

_WINDOW = (
    "The context window is the model's own. For less, give the model a name in the settings file, with context = N."
)
_SAMPLING = "Requests say that. For defaults, give the model a name: 'mlxk profile --help'."
_BY_ITSELF = "Leave it out: it works by itself."
_WHOLE = "Leave it out: a model is computed on the GPU, all of it, where there is one."
_TEMPLATE = "Leave it out: the chat template is the model's own, and its formats are told from it."
_CODE = "Leave it out: code that comes with a model is never run."
_BUDGET = "Kept prompts and keys and values share the memory that models leave; --memory-budget is about models."

UNNEEDED_FLAGS: Mapping[str, str] = {
    **dict.fromkeys(("--context-length", "--ctx-size", "--max-model-len", "--max-seq-len", "--num-ctx", "-c"), _WINDOW),
    **dict.fromkeys(
        ("--min-p", "--repeat-penalty", "--seed", "--temp", "--temperature", "--top-k", "--top-p", "-s"), _SAMPLING
    ),
    **dict.fromkeys(
        (
            "--cont-batching",
            "--enable-auto-tool-choice",
            "--enable-chunked-prefill",
            "--enable-prefix-caching",
            "--flash-attn",
            "--metrics",
            "--mmproj",
            "--prefill-step-size",
            "--prompt-concurrency",
            "--slots",
            "-cb",
            "-fa",
        ),
        _BY_ITSELF,
    ),
    **dict.fromkeys(("--gpu-layers", "--n-gpu-layers", "--threads", "-ngl", "-t"), _WHOLE),
    **dict.fromkeys(
        (
            "--chat-template",
            "--chat-template-file",
            "--jinja",
            "--reasoning-format",
            "--reasoning-parser",
            "--tool-call-parser",
            "--use-default-chat-template",
        ),
        _TEMPLATE,
    ),
    "--trust-remote-code": _CODE,
    **dict.fromkeys(
        ("--cache-ram", "--gpu-memory-utilization", "--prompt-cache-bytes", "--prompt-cache-size", "--swap-space"),
        _BUDGET,
    ),
}
"""The reason why ``serve`` does not need each of these flags of other servers."""

HUB_FLAGS: Mapping[str, str] = {
    "--cache-dir": "HF_HUB_CACHE, or cache in the table [hub] of the settings file, says where models are kept.",
    "--local-dir": "For a copy in a folder of your own: mlxk clone NAME DIR",
    "--revision": "Write it behind the name: NAME@REVISION",
    "--token": "Set HF_TOKEN, or run: hf auth login",
}
"""Advice for flags of hub clients that no command here has."""
