"""Flags of generation and the values built from them: sampling, engine options, tools, schemas, images and audio."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.errors import UsageError, ValidationError
from mlxk.domain.generation.conversation import (
    MAX_NAME,
    MAX_TOOL_BYTES,
    MAX_TOOLS,
    RESERVED_VARIABLES,
    misplaced_definitions,
)
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.settings import (
    DEFAULT_THINKING_TAGS,
    DRAFT_KINDS,
    Effort,
    EngineOptions,
    GenerationSettings,
)
from mlxk.domain.generation.video import VideoSampling
from mlxk.domain.models.kv_cache import KV_SCHEMES
from mlxk.domain.text import require_valid_unicode
from mlxk.entrypoints.cli.command import add_ranks_argument, number_of_bits
from mlxk.entrypoints.cli.input_files import is_prompt
from mlxk.entrypoints.cli.text_files import MAX_JSON_BYTES, parsed_json, read_json, read_text


def tool_faults(definitions: object) -> list[str]:
    """Return the errors in function definitions of OpenAI's format, each after its field path."""
    if not isinstance(definitions, list) or not all(isinstance(each, dict) for each in definitions):
        return ["must be a JSON array of function definitions"]
    if len(definitions) > MAX_TOOLS:
        return [f"must have at most {MAX_TOOLS} entries (has {len(definitions)})"]
    return [f"[{index}]{fault}" for index, tool in enumerate(definitions) for fault in _faults(tool)]


def _faults(tool: dict[str, object]) -> Iterator[str]:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        yield '.type must be "function"'
    if not isinstance(function, dict):
        yield ".function must be an object"
        return
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        yield f".function.name must be a text of 1 to {MAX_NAME} characters"
    if not isinstance(function.get("description"), str | None):
        yield ".function.description must be a text"
    if not isinstance(parameters, dict | None):
        yield ".function.parameters must be an object"
    for keyword in misplaced_definitions(parameters if isinstance(parameters, dict) else None):
        yield f".function.parameters.{keyword} must be an object"
    if len(json.dumps(tool, ensure_ascii=False).encode("utf-8", "surrogatepass")) > MAX_TOOL_BYTES:
        yield f" is larger than {MAX_TOOL_BYTES} bytes"


FORMATS = ("text", "json", "srt", "vtt")

ENGLISH = "en"


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the engine options."""
    group = parser.add_argument_group("computing", "Most of these trade memory against speed.")
    add_ranks_argument(group)
    group.add_argument("--draft-model", metavar="MODEL", help="a smaller model of the same family proposes tokens")
    add_draft_arguments(group)
    group.add_argument("--adapter", metavar="DIR", help="apply a LoRA adapter")
    add_cache_arguments(group, "keep keys and values in 8, 4 or 2 bits")
    group.add_argument("--max-kv-size", type=int, metavar="N", help="remember only the last N tokens")
    add_activations_argument(group)
    group.add_argument(
        "--strict-memory", action=argparse.BooleanOptionalAction, help="refuse a model that exceeds the memory budget"
    )
    group.add_argument(
        "--strict-capabilities",
        action=argparse.BooleanOptionalAction,
        help="refuse tools for a model that is not made for them",
    )


def add_cache_arguments(group: argparse._ActionsContainer, bits_help: str) -> None:
    """Declare the flags of the KV cache's quantization."""
    group.add_argument(
        "--kv-bits", type=number_of_bits, metavar="N", help=f"{bits_help}; turboquant: 2 to 4, by halves"
    )
    group.add_argument(
        "--kv-scheme",
        "--kv-quant-scheme",
        choices=KV_SCHEMES,
        help="how; turboquant is experimental, and slower",
    )
    group.add_argument("--kv-group-size", type=int, metavar="N", help="numbers of them that share a scale: 32, 64, 128")


def add_activations_argument(group: argparse._ActionsContainer) -> None:
    """Declare ``--quantize-activations``."""
    text = "quantize activations too, for weights in mxfp8 or nvfp4 on NVIDIA's GPUs"
    group.add_argument("--quantize-activations", action=argparse.BooleanOptionalAction, help=text)


def add_draft_arguments(group: argparse._ActionsContainer) -> None:
    """Declare the flags of the draft model's proposals."""
    count = group.add_mutually_exclusive_group()
    count.add_argument(
        "--draft-tokens", type=int, metavar="N", help="tokens that it proposes at a time, 1 to 16 (3, or as trained)"
    )
    count.add_argument(
        "--draft-block-size",
        type=_block_size,
        dest="draft_tokens",
        metavar="N",
        help="the same, counting the token that the model adds",
    )
    group.add_argument("--draft-kind", choices=DRAFT_KINDS, help="what it must be; its files say what it is")


def _block_size(text: str) -> int:
    """Return the number of proposed tokens in a block, whose last token is the main model's."""
    try:
        return int(text) - 1
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None


def engine_options(arguments: argparse.Namespace) -> EngineOptions:
    """Return the engine options.

    Raises:
        ValidationError: The adapter's path is empty.
    """
    if arguments.adapter == "":
        raise ValidationError("--adapter: the path is empty", hint="Name the directory of a LoRA adapter.")
    adapter = None if arguments.adapter is None else os.path.abspath(os.path.expanduser(arguments.adapter))
    return EngineOptions(
        adapter=adapter,
        draft_tokens=arguments.draft_tokens,
        kv_bits=arguments.kv_bits,
        kv_scheme=arguments.kv_scheme,
        kv_group_size=arguments.kv_group_size,
        max_kv_size=arguments.max_kv_size,
        quantize_activations=arguments.quantize_activations,
    )


def grammar(arguments: argparse.Namespace) -> Grammar | None:
    """Return the grammar of ``--json-schema``; None without the flag.

    Raises:
        StorageError, ValidationError: The schema's file cannot be read, or is not a JSON schema.
    """
    if arguments.json_schema is None:
        return None
    path, flag = arguments.json_schema, "--json-schema"
    text = read_text(path, flag, MAX_JSON_BYTES)
    parsed_json(text, path, flag)
    schema = Grammar.json_schema(text)
    schema.validate()
    return schema


def tools(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the function definitions of ``--tools``, each as JSON text.

    Raises:
        StorageError, ValidationError: The file cannot be read, or is not a JSON array of function definitions.
    """
    if arguments.tools is None:
        return ()

    definitions = read_json(arguments.tools, "--tools")
    if faults := tool_faults(definitions):
        raise ValidationError(
            f"--tools: '{arguments.tools}': {'; '.join(faults)}",
            hint='Each entry looks like {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
        )
    return tuple(json.dumps(each) for each in definitions)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sampling flags."""
    group = parser.add_argument_group("sampling", "What is not given is as the model's generation_config says.")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    group.add_argument("--temperature", type=float, metavar="F", help="0 always takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="F", help="sample from the likeliest tokens of this probability")
    group.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest tokens; 0 is off")
    group.add_argument("--min-p", type=float, metavar="F", help="drop tokens below this share of the likeliest one")
    group.add_argument("--repetition-penalty", type=float, metavar="F", help="above 1 discourages repeating")
    group.add_argument("--presence-penalty", type=float, metavar="F", help="discourages tokens generated before")
    group.add_argument("--frequency-penalty", type=float, metavar="F", help="the same, by how often")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that is valid against this schema")
    group.add_argument("--thinking-budget", type=int, metavar="N", help="most tokens of reasoning before the answer")
    group.add_argument(
        "--reasoning-effort",
        choices=[effort.value for effort in Effort],
        help="how much to reason; the nearest that the model knows",
    )
    group.add_argument("--thinking-start-token", metavar="TEXT", help="begins reasoning, where it is not known")
    group.add_argument("--thinking-end-token", metavar="TEXT", help="ends reasoning, where it is not known")
    group.add_argument(
        "--template-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a variable for the chat template, as JSON or else as text; repeatable",
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def settings(arguments: argparse.Namespace) -> GenerationSettings:
    """Return the generation settings."""
    return GenerationSettings(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
        thinking_budget=arguments.thinking_budget,
        grammar=grammar(arguments),
    )


def effort(arguments: argparse.Namespace) -> Effort | None:
    """Return the reasoning effort; None without the flag."""
    return None if arguments.reasoning_effort is None else Effort(arguments.reasoning_effort)


def thinking_tags(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """Return the texts that begin and end reasoning; None without the flags.

    Raises:
        ValidationError: One is empty.
    """
    start, end = arguments.thinking_start_token, arguments.thinking_end_token
    for flag, text in (("--thinking-start-token", start), ("--thinking-end-token", end)):
        if text == "":
            raise ValidationError(f"{flag}: the text is empty", hint="Give the text that the model writes.")
        require_valid_unicode(text or "", flag)
    if start is None and end is None:
        return None
    return start or DEFAULT_THINKING_TAGS[0], end or DEFAULT_THINKING_TAGS[1]


def template_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the variables of ``--template-option``.

    Raises:
        ValidationError: One has no name, or a name that the conversation itself sets.
    """
    flag, options = "--template-option", dict[str, Any]()
    for pair in arguments.template_option:
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise ValidationError(
                f"{flag}: '{pair}' is not KEY=VALUE", hint="For example: --template-option enable_thinking=false"
            )
        if name in RESERVED_VARIABLES:
            raise ValidationError(f"{flag}: '{name}' belongs to the conversation, which is given otherwise")
        require_valid_unicode(pair, flag)
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):
            options[name] = value
    return options


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of images and clips."""
    group = parser.add_argument_group("images", "What a model says about images; the prompt may stand before or after.")
    group.add_argument("--image", nargs="+", action="extend", metavar="FILE", help="show a model these files")
    group.add_argument("--chunk", type=int, metavar="N", help="images shown together, 1 to 5; one by one by default")
    _add_video_arguments(parser)


def has_images(arguments: argparse.Namespace) -> bool:
    """Whether there are images or clips.

    Raises:
        UsageError: There are none, but a flag needs some; or ``--chunk`` is given with a clip.
    """
    if arguments.chunk is not None and not arguments.image:
        raise UsageError("--chunk requires --image FILE.")
    if arguments.chunk is not None and arguments.video:
        raise UsageError("--chunk and --video exclude each other: with a clip, all images are shown together.")
    flags = {"--fps": arguments.fps, "--max-frames": arguments.max_frames, "--max-pixels": arguments.max_pixels}
    given = next((flag for flag, value in flags.items() if value is not None), None)
    if given and not arguments.video and not arguments.chat:
        raise UsageError(f"{given} requires --video FILE.")
    return bool(arguments.image or arguments.video)


def _add_video_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("video", "What a model says about clips, of which it gets some frames.")
    group.add_argument("--video", nargs="+", action="extend", metavar="FILE", help="show a model these clips")
    group.add_argument("--fps", type=float, metavar="N", help="frames of each second; 1 by default")
    group.add_argument("--max-frames", type=int, metavar="N", help="most frames of a clip, 1 to 128; 16 by default")
    group.add_argument("--max-pixels", type=_pixels, metavar="WxH", help="make frames no larger than this, as 224x224")


def _pixels(text: str) -> int:
    """Convert a size such as 224x224, or a number, to a number of pixels."""
    width, _, height = text.lower().partition("x")
    try:
        return int(width) * int(height or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 224x224") from None


def video_sampling(arguments: argparse.Namespace) -> VideoSampling:
    """Return how frames are sampled from clips.

    Raises:
        ValidationError: A flag is out of range.
    """
    given = {name: getattr(arguments, name) for name in ("fps", "max_frames", "max_pixels")}
    sampling = VideoSampling(**{name: value for name, value in given.items() if value is not None})
    try:
        sampling.validate()
    except ValidationError as error:
        name, _, fault = error.message.partition(": ")
        raise ValidationError(f"--{name.replace('_', '-')} {fault}") from error
    return sampling


WITHOUT_IMAGES = {"tools": "--tools", "mcp": "--mcp", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with images outside of a chat, by attribute."""


def take_image_prompt(arguments: argparse.Namespace, built_in: ModelSource) -> list[str]:
    """Remove and return a prompt among the values of ``--image`` or ``--video``, which take all up to the next flag."""
    for name in ("image", "video"):
        values: list[str] = getattr(arguments, name) or []
        if len(values) > 1 and is_prompt(values[-1], built_in):
            setattr(arguments, name, values[:-1])
            return values[-1:]
    return []


def add_audio_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of audio."""
    group = parser.add_argument_group(
        "audio",
        "What is said in a recording; PROMPT is a hint of what to expect, or asks a model that also writes text.",
    )
    group.add_argument("--audio", nargs="+", action="extend", metavar="FILE", help="write down what is said in a file")
    group.add_argument("--language", metavar="CODE", help="what is spoken, such as de; found out when left out")
    group.add_argument("--translate", nargs="?", const=ENGLISH, metavar="en", help="write it down in English")
    group.add_argument(
        "--words",
        action="store_true",
        dest="time_words",
        help="time every word, where the model can; see --format json",
    )
    group.add_argument("--format", choices=FORMATS, help="text (default), json, or subtitles as srt or vtt")


def has_audio(arguments: argparse.Namespace) -> bool:
    """Whether there is a recording.

    Raises:
        UsageError: There is none, but a flag needs one.
    """
    if arguments.audio:
        return True
    flags = {
        "--translate": arguments.translate,
        "--language": arguments.language,
        "--words": arguments.time_words,
        "--format": arguments.format,
    }
    given = next((flag for flag, value in flags.items() if value), None)
    if given:
        raise UsageError(f"{given} requires --audio FILE.")
    return False


CONVERSATIONS_ONLY = {"mcp": "--mcp", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with a recording outside of a chat, by attribute."""


def take_audio_prompt(arguments: argparse.Namespace) -> list[str]:
    """Remove and return a prompt among the values of ``--audio``, which takes all up to the next flag."""
    values: list[str] = arguments.audio or []
    if len(values) < 2 or os.path.exists(os.path.expanduser(values[-1])):
        return []
    arguments.audio = values[:-1]
    return values[-1:]
