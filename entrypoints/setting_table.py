"""All settings of the settings file: key, kind, default, environment variables and flag.

``settings_file`` checks the file against this table, ``settings`` ranks its values below the environment, and
``docs/settings.md`` lists it.
"""

from collections.abc import Mapping

import attrs

from mlxk.domain.generation.settings import DRAFT_KINDS, MAX_DRAFT_TOKENS, MAX_LOGPROB_ALTERNATIVES, Effort
from mlxk.domain.models.kv_cache import ALL_KV_BITS, KV_GROUP_SIZES, KV_SCHEMES, PREFIX_CACHE_BITS
from mlxk.entrypoints.setting_kinds import (
    ADDRESS,
    JSON_TABLE,
    PATH,
    PATHS,
    SWITCH,
    TEXT,
    TEXTS,
    WORD,
    WORDS,
    Kind,
    number,
    one_of,
    whole,
)

LOG_LEVELS = ("debug", "info", "warning", "error")
CPU_DTYPES = ("auto", "float32", "model")
BLAS_CHOICES = ("auto", "off")

MOST_RANKS = 64
"""Processes over which a model may be spread."""

RANK_TIMEOUTS = (2, 3600)
"""Bounds in seconds of the silence after which a rank counts as lost; each sends a heartbeat twice a second."""

MODELS = "models"
"""The table of the user's names for models; each name is a table in it."""


@attrs.frozen
class Setting:
    """One setting of the file."""

    key: str
    kind: Kind
    meaning: str
    default: object = None
    """The default for the documentation; None for none."""
    variables: tuple[str, ...] = ()
    """Environment variables, which override the file; the file's value is passed on under the first of them."""
    field: str | None = None
    """Dotted path of its field in ``Settings`` or, without variables, in ``ServerSettings``."""
    argument: str | None = None
    """The ``argparse`` attribute that the file's value fills; None where ``Settings`` or a profile takes it."""
    flag: str | None = None
    """The flag that overrides variables and the file."""
    inverted: bool = False
    """Whether its first variable switches it off, such as NO_COLOR."""
    secret: bool = False
    """Whether its value must never be printed."""

    @property
    def attribute(self) -> str:
        """The last part of its field."""
        return (self.field or self.key).rpartition(".")[2]


_INVERTING = ("NO_COLOR", "HF_HUB_DISABLE_SYMLINKS")
"""Variables that switch a setting off."""
_SECRET_KEYS = ("token", "api_key")


def _variable(key: str, kind: Kind, meaning: str, default: object, sources: str) -> Setting:
    """Return a setting with environment variables.

    ``sources`` is the field of ``Settings``, the variables and, last, the flag if there is one, separated by spaces.
    """
    field, *names = sources.split()
    variables = tuple(name for name in names if not name.startswith("--"))
    flag = next((name for name in names if name.startswith("--")), None)
    inverted = variables[0] in _INVERTING
    return Setting(key, kind, meaning, default, variables, field, None, flag, inverted, key in _SECRET_KEYS)


def _flagged(key: str, kind: Kind, meaning: str, default: object = None, field: str | None = None) -> Setting:
    """Return a setting that fills the flag of its name; ``field`` is that of ``ServerSettings``."""
    return Setting(key, kind, meaning, default, (), field, key, f"--{key.replace('_', '-')}")


def _generation(key: str, kind: Kind, meaning: str) -> Setting:
    """Return a setting of generation; the ``Profile`` of a model carries its value."""
    return Setting(key, kind, meaning, flag=f"--{key.replace('_', '-')}")


_PORT, _CHUNK_SIZE = whole(0, 65535), "MLXK2_VISION_CHUNK_SIZE"
_ALTERNATIVES = whole(0, MAX_LOGPROB_ALTERNATIVES)
_STORED_BITS = "Quantize kept prompts to so many bits before they are dropped for lack of memory."

ALWAYS = (
    _variable(
        "log_level",
        one_of(*LOG_LEVELS),
        "The least severe events to log; servers log at info by default.",
        "warning",
        "log_level MLXK2_LOG_LEVEL --log-level",
    ),
    _variable("log_json", SWITCH, "Log as JSON.", False, "log_json MLXK2_LOG_JSON --log-json"),
    _variable("color", SWITCH, "Use colours on a terminal.", True, "color NO_COLOR"),
    _variable("workspace_home", PATH, "A folder of workspaces.", None, "workspace_home MLXK_WORKSPACE_HOME"),
    _variable("exif_metadata", SWITCH, "Show EXIF metadata.", True, "exif_metadata MLXK2_EXIF_METADATA"),
    _variable(
        "chunk", whole(1, 5), "Images in one prompt; more take several.", 1, f"serve.chunk {_CHUNK_SIZE} --chunk"
    ),
    _variable(
        "cpu_dtype", one_of(*CPU_DTYPES), "16-bit weights on a CPU.", "auto", "cpu_dtype MLXK2_CPU_DTYPE --cpu-dtype"
    ),
    _variable("blas", one_of(*BLAS_CHOICES), "A library for matrices on a CPU.", "auto", "blas MLXK2_BLAS --blas"),
    _variable("alpha_features", SWITCH, "Enable alpha features.", False, "enable_alpha MLXK2_ENABLE_ALPHA_FEATURES"),
)

_HUB = (
    _variable(
        "cache",
        PATH,
        "Directory of the hub cache.",
        "~/.cache/huggingface/hub",
        "hub_cache HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HOME",
    ),
    _variable(
        "endpoint", ADDRESS, "The hub to pull from and push to.", "https://huggingface.co", "hub_endpoint HF_ENDPOINT"
    ),
    _variable(
        "token",
        WORD,
        "The token for private and gated models, and for pushing.",
        None,
        "hub_token HF_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_TOKEN",
    ),
    _variable(
        "token_file",
        PATH,
        "The file in which `hf auth login` stores the token.",
        "~/.cache/huggingface/token",
        "hub_token_file HF_TOKEN_PATH HF_HOME",
    ),
    _variable(
        "token_for_writing_only",
        SWITCH,
        "Send no token where none is needed, to push only.",
        False,
        "hub_token_for_writing_only HF_HUB_DISABLE_IMPLICIT_TOKEN",
    ),
    _variable(
        "offline", SWITCH, "Send no request to the hub.", False, "hub_offline HF_HUB_OFFLINE TRANSFORMERS_OFFLINE"
    ),
    _variable("links", SWITCH, "Snapshots hold links to files, not files.", True, "hub_links HF_HUB_DISABLE_SYMLINKS"),
    _variable(
        "metadata_timeout",
        whole(1, 3600),
        "Seconds that a request for a file's metadata may take.",
        10,
        "hub_metadata_timeout HF_HUB_ETAG_TIMEOUT",
    ),
    _variable(
        "timeout",
        whole(1, 3600),
        "Seconds without a byte before a request is repeated.",
        10,
        "hub_timeout HF_HUB_DOWNLOAD_TIMEOUT",
    ),
)

GENERATION = (
    _generation("system", TEXT, "The system prompt."),
    _generation("max_tokens", whole(1), "Most tokens to generate."),
    _generation("temperature", number(0, 5), "0 always takes the likeliest token."),
    _generation("top_p", number(0, 1), "Sample from the likeliest tokens of this probability."),
    _generation("top_k", whole(0), "Sample from this many of the likeliest tokens; 0 is off."),
    _generation("min_p", number(0, 1), "Drop tokens below this share of the likeliest one."),
    _generation("repetition_penalty", number(0.1, 10), "Above 1 discourages repeating."),
    _generation("presence_penalty", number(-2, 2), "Discourages tokens generated before."),
    _generation("frequency_penalty", number(-2, 2), "The same, by how often."),
    _generation("seed", whole(0), "The same seed gives the same text."),
    _generation("stop", TEXTS, "End before one of these texts."),
    _generation("thinking", SWITCH, "Have a model that can reason do so first, or not."),
    _generation("thinking_budget", whole(0), "Most tokens of reasoning before the answer."),
    _generation("reasoning_effort", one_of(*(each.value for each in Effort)), "How much to reason."),
    _generation("thinking_start_token", TEXT, "Begins reasoning, where it is not known."),
    _generation("thinking_end_token", TEXT, "Ends reasoning, where it is not known."),
    _generation("template_option", JSON_TABLE, "Variables for the chat template."),
    _generation("draft_model", WORD, "A smaller model of the same family proposes tokens."),
    _generation("draft_tokens", whole(1, MAX_DRAFT_TOKENS), "Tokens that the draft model proposes at a time."),
    _generation("draft_kind", one_of(*DRAFT_KINDS), "What the draft model must be."),
    _generation("adapter", PATH, "Directory of a LoRA adapter."),
    _generation("kv_bits", one_of(*ALL_KV_BITS), "Bits of cached keys and values."),
    _generation("kv_scheme", one_of(*KV_SCHEMES), "How they are quantized; turboquant is experimental."),
    _generation("kv_group_size", one_of(*KV_GROUP_SIZES), "Numbers of them that share a scale."),
    _generation("max_kv_size", whole(16), "Remember only the last tokens, this many."),
    _generation("quantize_activations", SWITCH, "Quantize activations for mxfp8 and nvfp4 weights (CUDA)."),
)
"""The settings of generation, in [run] and in the table of a name."""

ENTRY = (
    Setting("model", WORD, "The model: a name, a unique part of one, NAME@REVISION or a path."),
    *GENERATION,
    Setting("context", whole(1), "Most tokens of prompt and answer together."),
    Setting("keep_alive", number(0), "Seconds after which the idle model is unloaded."),
    Setting("pin", SWITCH, "Never unload the model for being idle."),
    Setting("prefix_cache_bits", one_of(*PREFIX_CACHE_BITS), _STORED_BITS),
    Setting("top_logprobs_k", _ALTERNATIVES, "Most alternatives with a log probability."),
)
"""All settings of the table of a name."""

_STRICT = (
    _flagged("strict_memory", SWITCH, "Refuse models beyond the memory budget.", False, "strict_memory"),
    _flagged("strict_capabilities", SWITCH, "Refuse tools to models not made for them.", False, "strict_capabilities"),
    _flagged(
        "special_tokens_in_content",
        SWITCH,
        "Let control tokens in texts take effect.",
        False,
        "special_tokens_in_content",
    ),
)

_RUN = (
    *GENERATION,
    _variable("pipes", SWITCH, "Join piped text with the prompt.", True, "enable_pipes MLXK2_ENABLE_PIPES --no-stdin"),
    _variable(
        "audio_segments",
        SWITCH,
        "Append a table of segments to a transcript.",
        False,
        "audio_segments MLXK2_AUDIO_SEGMENTS",
    ),
    _variable("server", SWITCH, "Compute on a running server of yours.", True, "use_server MLXK2_USE_SERVER --server"),
    _flagged("local_ranks", whole(1, MOST_RANKS), "Processes over which the model is spread.", 1),
    _flagged("rank_timeout", number(*RANK_TIMEOUTS), "Seconds of silence after which one of them counts as lost.", 5.0),
    _flagged("attach", SWITCH, "Show the model images, clips and sound that the prompt names.", True),
    _flagged("stream", SWITCH, "Print the answer on a terminal as it arrives.", True),
    _flagged("reasoning", SWITCH, "Show what the model thinks.", True),
    _flagged("verbose", SWITCH, "Print tokens per second after the answer.", False),
    *_STRICT,
)

_SERVE = (
    _variable("host", WORD, "The address to listen on.", "127.0.0.1", "serve.host MLXK2_HOST --host"),
    _variable("port", _PORT, "The port to listen on; 0 takes any free one.", 8000, "serve.port MLXK2_PORT --port"),
    _variable("model", WORD, "The model to load at start.", None, "serve.model MLXK2_PRELOAD_MODEL --model"),
    _flagged("default_model", WORD, "Answers to names that no model has.", None, "default_model"),
    _flagged("draft_model", WORD, "A smaller model proposes tokens to that of model.", None),
    _flagged("kv_bits", one_of(*ALL_KV_BITS), "Bits of cached keys and values.", None),
    _flagged("kv_scheme", one_of(*KV_SCHEMES), "How they are quantized; turboquant is experimental.", None),
    _flagged("kv_group_size", one_of(*KV_GROUP_SIZES), "Numbers of them that share a scale.", None),
    _flagged("max_kv_size", whole(16), "Remember only the last tokens of each answer.", None),
    _flagged("quantize_activations", SWITCH, "Quantize activations for mxfp8 and nvfp4 weights (CUDA).", None),
    _flagged("draft_tokens", whole(1, MAX_DRAFT_TOKENS), "Tokens that it proposes at a time.", None),
    _flagged("draft_kind", one_of(*DRAFT_KINDS), "What it must be.", None),
    _flagged("top_logprobs_k", _ALTERNATIVES, "Most alternatives with a log probability.", None),
    _variable(
        "max_tokens",
        whole(1, 2**31 - 1),
        "Tokens of an answer when a request names no limit.",
        None,
        "serve.max_tokens MLXK2_MAX_TOKENS --max-tokens",
    ),
    _variable("api_key", WORD, "A key that clients must send.", None, "serve.api_key MLXK2_API_KEY"),
    _flagged("api_key_file", PATH, "Keys that open the server, one a line.", None, "api_key_file"),
    _flagged("embed_backend", ADDRESS, "Another server makes the vectors.", None, "embed_backend"),
    _flagged("local_ranks", whole(1, MOST_RANKS), "Processes over which the model is spread.", 1, "local_ranks"),
    _flagged(
        "rank_timeout",
        number(*RANK_TIMEOUTS),
        "Seconds of silence after which one of them counts as lost.",
        5.0,
        "rank_timeout",
    ),
    _flagged("max_streams", whole(1, 1024), "Answers computed at the same time.", 32, "max_streams"),
    _flagged("max_queue", whole(0, 4096), "Answers that may wait for their turn.", 96, "max_queue"),
    _flagged("max_body", whole(1, 1024), "Size of a request, MiB.", 72, "max_body_mib"),
    _flagged("keep_alive", number(0), "Seconds after which an idle model is unloaded.", None, "keep_alive"),
    _flagged("memory_budget", whole(1), "What models in memory may take together, MiB.", None, "memory_budget_mib"),
    _flagged("prefix_cache_dir", PATH, "A folder to keep prompts in for later starts.", None, "prefix_cache_dir"),
    _flagged("prefix_cache_disk", number(0.01), "What they may take there, GiB.", 10.0, "prefix_cache_disk_gib"),
    _flagged("prefix_cache_bits", one_of(*PREFIX_CACHE_BITS), _STORED_BITS, None),
    _flagged(
        "vision_cache_size", whole(0), "What a model keeps of images for later prompts, MiB.", 512, "vision_cache_mib"
    ),
    *_STRICT,
    _flagged("image_metadata", SWITCH, "Begin answers about images with their metadata.", False, "image_metadata"),
    Setting(
        "thinking",
        SWITCH,
        "Have models that can reason do so first, or not.",
        None,
        (),
        "enable_thinking",
        "enable_thinking",
        "--thinking",
    ),
    _flagged("thinking_budget", whole(0), "Most tokens of reasoning before the answer.", None, "thinking_budget"),
    _flagged("thinking_start_token", TEXT, "Begins reasoning, where it is not known.", None, "thinking_start_token"),
    _flagged("thinking_end_token", TEXT, "Ends reasoning, where it is not known.", None, "thinking_end_token"),
    _flagged("page", SWITCH, "Have a chat page for browsers; by default on loopback only.", None, "page"),
    _flagged("cors_origin", WORDS, "Web pages that may ask.", (), "cors_origins"),
    _flagged("desktop_apps", SWITCH, "Let desktop apps ask, as pages of app:// and such.", False),
    _flagged("allowed_host", WORDS, "Further host names of the server.", (), "allowed_hosts"),
    _flagged("allow_model_paths", SWITCH, "Let clients name models by path.", False, "allow_paths"),
    _flagged("allow_media_path", PATHS, "Folders of images, clips and sound that clients may name.", (), "media_paths"),
    _flagged(
        "allow_remote_media",
        SWITCH,
        "Let clients name images, clips and sound at public addresses.",
        False,
        "allow_remote_media",
    ),
    _flagged(
        "allow_voice_cloning", SWITCH, "Let clients have voices of recordings imitated.", False, "allow_voice_cloning"
    ),
    _flagged("allow_model_changes", SWITCH, "Let clients pull and remove models.", False, "allow_model_changes"),
    _flagged("drain_timeout", number(0), "Seconds that answers may take to finish.", 30.0, "drain_seconds"),
    _flagged("otlp", SWITCH, "Send traces and metrics to an OpenTelemetry collector.", False, "otlp"),
    _flagged("supervisor", SWITCH, "Restart the server's worker when it dies.", True, "supervised"),
)

TABLES: Mapping[str, tuple[Setting, ...]] = {
    "": ALWAYS,
    "hub": _HUB,
    "run": _RUN,
    "chat": (Setting("keep", SWITCH, "Keep chats.", False, field="keep_chats"),),
    "serve": _SERVE,
    "embed": (
        _flagged("dimensions", whole(1), "Shorten the vectors, for models made for it."),
        _flagged("truncate", SWITCH, "Cut texts that are too long for the model.", False),
    ),
    "embed-serve": (
        _flagged("host", WORD, "The address to listen on.", "127.0.0.1"),
        _flagged("port", _PORT, "The port to listen on; 0 takes any free one.", 8001),
        _flagged("supervisor", SWITCH, "Restart the server's worker when it dies.", True),
    ),
}
"""The settings of each table, in the order of the documentation; the key '' has those outside of any table."""


def setting(table: str, key: str) -> Setting:
    """Return the setting of a key, which must exist."""
    return next(each for each in TABLES[table] if each.key == key)
