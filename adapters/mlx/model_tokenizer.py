"""The model tokenizer port on mlx-lm's and mlx-vlm's tokenizers.

Uses the tokenizer of a model that the engine has loaded, or loads the tokenizer alone, in the caller's thread; the last
few of these stay in memory. Computes nothing with MLX and never waits for the owner thread.

The format report tests chat template and tokenizer: it renders conversations of every kind like requests, and has the
parser of answers read a tool call that the template wrote.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.library_imports import contained
from mlxk.adapters.mlx.loaders import library_for, loader_of
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import identity_of, object_in, read_config, require_regular
from mlxk.adapters.mlx.loading.text_model import LoadedModel, LoadedTokenizer, assemble_tokenizer, load_tokenizer
from mlxk.adapters.mlx.prompting.control_tokens import Rendering, broken_up
from mlxk.adapters.mlx.prompting.conversation_rendering import ConversationRenderer, RenderingJob, rendering_job
from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.adapters.mlx.prompting.repair_steps import CALLS_AS_TEXT
from mlxk.adapters.mlx.prompting.template_inputs import effort_levels, switch_names, wire_prompt
from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.adapters.mlx.text_generator import ModelLeases
from mlxk.application.ports.model_tasks import (
    CallSample,
    EndToken,
    FittedConversation,
    FormatReport,
    ModelTokenizer,
    TokenizedText,
    TokenSpelling,
)
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.formats.chat_templates import CALL_UNREAD, NO_TEMPLATE
from mlxk.domain.formats.family_formats import CallSyntax, detect_syntaxes
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import ReasoningFormat
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.request import GenerationRequest, TokenIds, ToolCallDelta
from mlxk.domain.models.model import ModelHandle

KEPT_TOKENIZERS = 2
"""Tokenizers kept in memory without their models; a large one takes 100 MB."""

_UNEXPANDED = "Each image or recording counts as its marker here; the model gets more tokens for it."


@attrs.frozen(eq=False)
class _Tokenizer:
    """A tokenizer, with the processor and template of a vision-language model."""

    text: LoadedTokenizer
    vision: Any = None
    """A ``vision.network.VisionTemplate``; None for a text model."""


class MlxModelTokenizer(ModelTokenizer):
    """Renders, tokenizes and detokenizes.

    Args:
        leases: Leases of the engine's loaded models.
    """

    def __init__(self, leases: ModelLeases) -> None:
        self._leases = leases
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Tokenizer] = OrderedDict()

    def render(self, request: GenerationRequest, *, opens_answer: bool = True) -> TokenizedText:
        request.validate()
        with self._tokenizer(request.model, library_for(request)) as found:
            text, tokens = found.text, request.prompt
            if isinstance(tokens, tuple):
                return self._decoded(text, tokens, "prompt")
            if found.vision is not None and isinstance(request.prompt, Conversation):
                return self._render_vision(request, found, opens_answer)
            with text.lock:
                rendered = text.renderer.render(request.prompt, job=rendering_job(request, opens_answer=opens_answer))
            return TokenizedText(rendered.text, rendered.tokens, text.context_length, rendered.adaptations)

    def encode(
        self, model: ModelHandle, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> TokenizedText:
        with self._tokenizer(model) as found:
            tokenizer = found.text
            with tokenizer.lock:
                renderer = tokenizer.renderer
                renderer.require_plausible_length(text)
                rendering = Rendering(text) if parse_special else renderer.control.all_spelled(text)
                tokens = renderer.encode(rendering, begins=add_special)
            return TokenizedText(text, tuple(tokens), tokenizer.context_length)

    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        with self._tokenizer(model) as found:
            return self._decoded(found.text, tokens, "tokens")

    def report(self, model: ModelHandle) -> FormatReport:
        with self._tokenizer(model) as found, found.text.lock:
            tokenizer, renderer = found.text.tokenizer, found.text.renderer
            ends_by_source = {
                "generation_config": _end_tokens_in(object_in(model, "generation_config.json") or {}),
                "config": _end_tokens_in(read_config(model)),
                "tokenizer": [each for each in [unwrapped(tokenizer).eos_token_id] if each is not None],
            }
            return format_report(renderer, renderer.conversations, tokenizer.get_vocab(), ends_by_source)

    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        with self._tokenizer(model) as found, found.text.lock:
            names = found.text.tokenizer.convert_ids_to_tokens(list(tokens))
            spell = found.text.decoder.spell
            return tuple(TokenSpelling(name or "", spell(token)) for name, token in zip(names, tokens, strict=True))

    def _decoded(self, tokenizer: LoadedTokenizer, tokens: TokenIds, field: str) -> TokenizedText:
        with tokenizer.lock:
            size = max(tokenizer.vocabulary_size or 0, max(tokenizer.tokenizer.get_vocab().values(), default=-1) + 1)
            unknown = next((token for token in tokens if not 0 <= token < size), None)
            if unknown is not None:
                raise ValidationError.in_field(field, f"names token {unknown}; the model has tokens 0 to {size - 1}")
            stream = tokenizer.decoder.stream()
            text = "".join([*map(stream.feed, tokens), stream.flush()])
        return TokenizedText(text, tokens, tokenizer.context_length)

    def _render_vision(self, request: GenerationRequest, found: _Tokenizer, opens_answer: bool) -> TokenizedText:
        from mlxk.adapters.mlx.vision.encoded import decoded
        from mlxk.adapters.mlx.vision.prompts import encode_text, render_text

        tokenizer = found.text
        with tokenizer.lock:
            rendered = render_text(request, tokenizer, found.vision, opens_answer=opens_answer)
            rendering = rendered.rendering
            if has_media := request.has_images or request.has_audio:
                rendering = Rendering(broken_up(rendering))
            tokenizer.renderer.require_plausible_length(rendering.text)
            tokens = decoded(encode_text(rendering, tokenizer, found.vision), found.vision)
        unexpanded = _UNEXPANDED if has_media else None
        return TokenizedText(rendering.text, tokens, tokenizer.context_length, rendered.changes, unexpanded)

    @contextmanager
    def _tokenizer(self, model: ModelHandle, library: Library | None = None) -> Iterator[_Tokenizer]:
        """Yield the tokenizer of a loaded model, which stays loaded within the block, or else one that is loaded alone.

        Args:
            model: The model.
            library: The library that renders the conversation; None for text that needs no rendering.
        """
        wanted = [WantedModel(model)] if library is None else [WantedModel(model, None, loader_of(library))]
        with self._leases.loaded(wanted, LoadedModel) as loaded:
            if loaded is None:
                yield self._cached(model, vision=library is Library.MLX_VLM)
            else:
                yield _Tokenizer(loaded, loaded.vision and loaded.vision.parts.template)

    def _cached(self, model: ModelHandle, *, vision: bool) -> _Tokenizer:
        require_regular(model)
        identity = f"{identity_of(model)}|{vision}"
        with self._lock:
            tokenizer = self._kept.pop(identity, None) or self._load(model, identity, vision)
            self._kept[identity] = tokenizer
            while len(self._kept) > KEPT_TOKENIZERS:
                self._kept.popitem(last=False)
            return tokenizer

    def _load(self, model: ModelHandle, identity: str, vision: bool) -> _Tokenizer:
        config = read_config(model)
        with translated(model, "has an architecture that is not known"), contained(model.name):
            tokenizer, template = load_tokenizer(model, config.get("eos_token_id")), None
            if vision:
                # Not at the top, since mlx-vlm takes a second to import.
                from mlxk.adapters.mlx.vision.loader import load_template

                template = load_template(model, config, tokenizer)
        return _Tokenizer(assemble_tokenizer(model, identity, tokenizer, config), template)


def _end_tokens_in(config: Mapping[str, Any]) -> list[int]:
    """Return the end-of-sequence tokens in a config."""
    nested = config.get("text_config")
    tokens = config.get("eos_token_id", nested.get("eos_token_id") if isinstance(nested, dict) else None)
    return [each for each in (tokens if isinstance(tokens, list) else [tokens]) if isinstance(each, int)]


_ARGUMENTS = {"city": "Köln", "days": 3}
_NAME = "get_weather"
_TOOL = json.dumps(
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where."},
                    "days": {"type": "integer", "description": "How many."},
                },
                "required": ["city"],
            },
        },
    }
)


def _call(identity: str) -> ToolCall:
    return ToolCall(_NAME, json.dumps(_ARGUMENTS, ensure_ascii=False), identity)


def _user(text: str = "Hello") -> Message:
    return Message(Role.USER, text)


def _system(text: str) -> Message:
    return Message(Role.SYSTEM, text)


_ANSWER = Message(Role.ASSISTANT, "Good day")
# Kimi's templates write the id in place of the name, so it has this form; other templates accept any.
_FIRST, _SECOND = f"functions.{_NAME}:0", f"functions.{_NAME}:1"
_CALLING = Message(Role.ASSISTANT, "", tool_calls=(_call(_FIRST),))
_CALLING_TWICE = Message(Role.ASSISTANT, "", tool_calls=(_call(_FIRST), _call(_SECOND)))
_RESULTS = tuple(Message(Role.TOOL, "Sunny", tool_call_id=each) for each in (_FIRST, _SECOND))

_CONVERSATIONS: Mapping[str, Conversation] = {
    "one message": Conversation((_user(),)),
    "several turns": Conversation((_user(), _ANSWER, _user("And now?"))),
    "system prompt": Conversation((_system("Be brief."), _user())),
    "several system messages": Conversation((_system("Be brief."), _system("Be kind."), _user())),
    "late system message": Conversation((_user(), _ANSWER, _system("Be brief."), _user("And now?"))),
    "turns of one role": Conversation((_user(), _user("And now?"))),
    "assistant first": Conversation((_ANSWER, _user())),
    "tools": Conversation((_user(),), (_TOOL,)),
    "tool call and result": Conversation((_user(), _CALLING, _RESULTS[0]), (_TOOL,)),
    "calls in one message": Conversation((_user(), _CALLING_TWICE, *_RESULTS), (_TOOL,)),
}
_GREETING = "one message"


def format_report(
    renderer: PromptRenderer,
    conversations: ConversationRenderer,
    vocabulary: Mapping[str, int],
    ends_by_source: Mapping[str, list[int]],
) -> FormatReport:
    """Test the formats of a model.

    Args:
        renderer: The model's renderer of prompts.
        conversations: The renderer with the chat template under test.
        vocabulary: Ids of all tokens by text, including added ones.
        ends_by_source: The end-of-sequence tokens by the file that names them; the first file that names any decides.
    """
    reasoning, syntaxes = renderer.reasoning, detect_syntaxes(renderer.template, vocabulary)
    problems: list[str] = []
    fitted: tuple[FittedConversation, ...] = ()
    sample, reads_tools = None, False
    if conversations.has_template:
        fitted = _fitted(conversations)
        reads_tools = conversations.reads_tools
        problems += [f"{each.kind}: {each.refusal}" for each in fitted if each.refusal is not None]
        if fitted[0].refusal is None:
            sample = _sample(conversations, reasoning, syntaxes) if reads_tools else None
            problems += _call_problems(reads_tools=reads_tools, sample=sample)
    else:
        problems.append(NO_TEMPLATE)
    ends = _ends(renderer, vocabulary, ends_by_source)
    if not ends:
        problems.append("No token is known that ends a turn: answers end at the limit of tokens only.")
    return FormatReport(
        chat_template=conversations.has_template,
        reasoning=(reasoning.start, reasoning.end) if reasoning is not None else None,
        call_syntaxes=tuple(dict.fromkeys(each.name for each in syntaxes)),
        reads_tools=reads_tools,
        switches=switch_names(conversations.template),
        effort_levels=effort_levels(conversations.template),
        ends=ends,
        control_tokens=renderer.control.texts,
        conversations=fitted,
        call=sample,
        problems=tuple(problems),
    )


def _fitted(conversations: ConversationRenderer) -> tuple[FittedConversation, ...]:
    """Render every sample conversation; stop when the template refuses even the simplest."""
    fitted = []
    for kind, conversation in _CONVERSATIONS.items():
        try:
            rendered = conversations.render(wire_prompt(conversation), RenderingJob())
            steps = (*rendered.forms, *(each.code for each in rendered.adaptations))
            fitted.append(FittedConversation(kind, tuple(dict.fromkeys(steps))))
        except MlxkError as error:
            fitted.append(FittedConversation(kind, (), error.message))
            if kind == _GREETING:
                break
    return tuple(fitted)


def _sample(
    conversations: ConversationRenderer, reasoning: ReasoningFormat | None, syntaxes: Sequence[CallSyntax]
) -> CallSample | None:
    """Return a call as the template writes it, and whether our parser reads it; None where it cannot write one."""
    question = Conversation((_user(),), (_TOOL,))
    call = Conversation((_user(), _CALLING), (_TOOL,))
    try:
        before = conversations.render(wire_prompt(question), RenderingJob()).text
        rendered = conversations.render(wire_prompt(call), RenderingJob(opens_answer=False))
    except MlxkError:
        return None
    if any(each.code == CALLS_AS_TEXT.code for each in rendered.adaptations):
        return None
    after = rendered.text
    common = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
    common = min(len(before), len(after)) if common is None else common
    written = after[common:]
    parser = OutputParser((), reasoning, ToolCallFormat(tuple(syntaxes), Tools((_TOOL,))), before[:common])
    deltas = [*parser.feed(written), *parser.flush()]
    calls = [each.call for each in deltas if isinstance(each, ToolCallDelta)]
    parsed = [(each.name, json.loads(each.arguments)) for each in calls]
    return CallSample(written, parsed == [(_NAME, _ARGUMENTS)])


def _call_problems(*, reads_tools: bool, sample: CallSample | None) -> list[str]:
    if not reads_tools:
        return []
    if sample is None:
        return ["The chat template reads tools, but writes no calls: earlier ones are written as text."]
    return [] if sample.read else [CALL_UNREAD]


def _ends(
    renderer: PromptRenderer, vocabulary: Mapping[str, int], ends_by_source: Mapping[str, list[int]]
) -> tuple[EndToken, ...]:
    """Return the tokens that end a turn: those of the first file that names any, and those of the template."""
    by_template = renderer.turn_ends
    by_files = next(filter(None, ends_by_source.values()), [])
    texts = {index: text for text, index in vocabulary.items()}
    sources = {**ends_by_source, "template": sorted(by_template)}
    return tuple(
        EndToken(token, texts.get(token, ""), tuple(name for name, tokens in sources.items() if token in tokens))
        for token in sorted({*by_files, *by_template})
    )
