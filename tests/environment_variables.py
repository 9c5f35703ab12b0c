"""The table of environment variables, as ``docs/environment.md`` shows it."""

import attrs

from mlxk.entrypoints.setting_table import LOG_LEVELS


@attrs.frozen
class Variable:
    """One environment variable, as the documentation shows it."""

    name: str
    meaning: str
    values: str
    default: str


VARIABLES = (
    Variable("HF_HUB_CACHE", "Directory of the Hugging Face hub cache.", "a directory", "$HF_HOME/hub"),
    Variable("HUGGINGFACE_HUB_CACHE", "Another name for HF_HUB_CACHE, which takes precedence.", "a directory", "unset"),
    Variable(
        "HF_HOME", "The Hugging Face home; the cache is its `hub` folder.", "a directory", "$XDG_CACHE_HOME/huggingface"
    ),
    Variable("XDG_CACHE_HOME", "Directory of caches; the Hugging Face home is below it.", "a directory", "~/.cache"),
    Variable("XDG_CONFIG_HOME", "Directory of the settings file: mlxk/config.toml.", "a directory", "~/.config"),
    Variable("VISUAL", "The editor of `config edit`, and of `/edit` in a chat.", "a command", "unset"),
    Variable("EDITOR", "Another name for VISUAL, which takes precedence.", "a command", "unset"),
    Variable(
        "XDG_STATE_HOME", "Directory of chats, logs and servers' sockets: mlxk/.", "a directory", "~/.local/state"
    ),
    Variable("MLXK2_USE_SERVER", "Has commands compute on a running server of yours.", "0, false, no, off", "on"),
    Variable("MLXK_WORKSPACE_HOME", "A folder of workspaces, searched before the cache.", "a directory", "unset"),
    Variable("HF_ENDPOINT", "The hub to pull from and push to.", "an http or https address", "https://huggingface.co"),
    Variable("HF_TOKEN", "The token for private and gated models, and for pushing.", "a token", "the file below"),
    Variable("HUGGING_FACE_HUB_TOKEN", "Another name for HF_TOKEN, which takes precedence.", "a token", "unset"),
    Variable("HUGGINGFACE_HUB_TOKEN", "A further name for HF_TOKEN, after the others.", "a token", "unset"),
    Variable(
        "HF_HUB_DISABLE_IMPLICIT_TOKEN", "Sends no token where none is needed, to push only.", "1, true, yes, on", "off"
    ),
    Variable("HF_TOKEN_PATH", "The file in which `hf auth login` stores the token.", "a file", "$HF_HOME/token"),
    Variable("HF_HUB_OFFLINE", "Sends no request to the hub; cached models still work.", "1, true, yes, on", "off"),
    Variable("TRANSFORMERS_OFFLINE", "Another name for HF_HUB_OFFLINE.", "1, true, yes, on", "off"),
    Variable("HF_HUB_DISABLE_SYMLINKS", "Snapshots hold files instead of links.", "1, true, yes, on", "off"),
    Variable("HF_HUB_ETAG_TIMEOUT", "Seconds that a request for a file's metadata may take.", "1 to 3600", "10"),
    Variable("HF_HUB_DOWNLOAD_TIMEOUT", "Seconds without a byte before a request is repeated.", "1 to 3600", "10"),
    Variable(
        "MLXK2_ENABLE_PIPES",
        "Joins text piped to `run` with its prompt; `-` reads it in any case.",
        "0, false, no, off",
        "on",
    ),
    Variable(
        "MLXK2_ENABLE_ALPHA_FEATURES",
        "Enables experimental features: `embed`, `embed-serve`, `serve --embed-backend`.",
        "1, true, yes, on",
        "off",
    ),
    Variable(
        "MLXK2_CPU_DTYPE",
        "Without a GPU: 16-bit weights in float32 where free memory or the budget allows, or never.",
        "auto, float32, model",
        "auto",
    ),
    Variable(
        "MLXK2_BLAS", "Without a GPU: whether an OpenBLAS, BLIS or MKL of the machine is used.", "auto, off", "auto"
    ),
    Variable("MLXK2_AUDIO_SEGMENTS", "Appends a table of segments to a transcript.", "1, true, yes, on", "off"),
    Variable("MLXK2_LOG_LEVEL", "The least severe events to log.", ", ".join(LOG_LEVELS), "warning"),
    Variable("MLXK2_LOG_JSON", "Log as JSON, one object a line.", "1, true, yes, on", "off"),
    Variable("MLXK2_HOST", "The address `serve` listens on.", "an address or name", "127.0.0.1"),
    Variable("MLXK2_PORT", "The port `serve` listens on; 0 takes any free one.", "0 to 65535", "8000"),
    Variable("MLXK2_PRELOAD_MODEL", "The model that `serve` loads at start.", "a model", "unset"),
    Variable("MLXK2_MAX_TOKENS", "Tokens of a completion whose request to `serve` sets no limit.", "from 1", "unset"),
    Variable("MLXK2_VISION_CHUNK_SIZE", "Images in one prompt; more are processed in chunks.", "1 to 5", "1"),
    Variable("MLXK2_EXIF_METADATA", "Shows EXIF metadata to users and models.", "0, false, no, off", "on"),
    Variable(
        "MLXK2_RELOAD",
        "Restarts `serve` when mlxk's own source changes, as `--reload` does.",
        "1, true, yes, on",
        "off",
    ),
    Variable("MLXK2_API_KEY", "A key that clients of `serve` must send.", "a key", "unset"),
    Variable("TMPDIR", "Directory of temporary files: uploads, compiled kernels.", "a directory", "that of the system"),
    Variable("NO_COLOR", "Disables colours, unless it is empty.", "any text", "unset"),
    Variable("TERM", "`dumb` disables colours, and Tab in a chat.", "a terminal", "unset"),
    Variable("SSH_CONNECTION", "Has `/copy` use the clipboard of your terminal.", "set by ssh", "unset"),
    Variable("SSH_TTY", "The same.", "set by ssh", "unset"),
)
