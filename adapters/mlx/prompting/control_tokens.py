"""Control tokens that messages spell, such as ``<|im_end|>`` typed by a user, are kept as text.

A tokenizer turns the text of a control token into the token, whoever wrote it: a user could end a turn and begin
another one. So contents must be distinguished from the template's own markup. Where contents spell control tokens, the
conversation is rendered a second time with private-use characters in their place, which locates them in the text. The
text is then tokenized in pieces that are cut within the spelled tokens. Where this changes other tokens, it is
tokenized as a whole by a copy of the tokenizer that knows its control tokens under secret names. Prompts whose contents
spell no control tokens, which are nearly all, are tokenized as usual.
"""

import contextlib
import functools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from tokenizers import Tokenizer

from mlxk.adapters.mlx.prompting.detokenizer import unwrapped
from mlxk.adapters.mlx.prompting.template_sandbox import LIBRARY_ERRORS
from mlxk.domain.errors import ValidationError
from mlxk.domain.formats.reasoning import ReasoningFormat
from mlxk.domain.formats.regions import is_task_mark
from mlxk.domain.generation.conversation import Adaptation

Spans = tuple[tuple[int, int], ...]
"""Start and end offsets in a text, in order, without overlaps."""

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""Renders messages and tools."""

_SHORTEST = 3
"""Fewest characters of a control token; shorter special tokens are ordinary text, such as the padding token ``!``."""

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""Matches byte-fallback tokens, which are ordinary text."""

_BRACKETS = (("<", ">"), ("[", "]"))
"""Brackets of markup that vocabularies do not declare special, such as ``<tool_call>``."""

SPELLED_AS_TEXT = Adaptation(
    "special-tokens-as-text", "Control tokens that messages spell out are text for the model, and no control tokens."
)

_WIDTHLESS = "\u200b"

_PRIVATE = range(0xF0000, 0x10FFFE)
"""Private-use characters: templates do not change them, and hardly any text has them."""


class _Finder:
    """Finds control tokens in a text: leftmost first, the longest at each position, as tokenizers do.

    Args:
        texts: The texts of the control tokens.
    """

    def __init__(self, texts: frozenset[str]) -> None:
        self._texts = texts
        self._lengths = sorted({len(text) for text in texts}, reverse=True)
        beginnings = "|".join(sorted({re.escape(text[:2]) for text in texts}))
        self._beginning = re.compile(f"(?={beginnings})") if texts else None

    def find(self, text: str) -> Spans:
        """Return the spans of the control tokens."""
        spans: list[tuple[int, int]] = []
        for match in self._beginning.finditer(text) if self._beginning else ():
            start = match.start()
            if spans and start < spans[-1][1]:
                continue
            length = next((each for each in self._lengths if text[start : start + each] in self._texts), 0)
            if length:
                spans.append((start, start + length))
        return tuple(spans)


@attrs.frozen
class Rendering:
    """A rendered conversation."""

    text: str
    spelled: Spans = ()
    """Spans of the control tokens that contents spell."""


def broken_up(rendering: Rendering) -> str:
    """Return the text with a zero-width space in each spelled control token, so that no tokenizer recognizes it."""
    text, cuts = rendering.text, [start + 1 for start, _ in rendering.spelled]
    pieces = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return _WIDTHLESS.join(text[start:end] for start, end in pieces)


class ControlTokens:
    """The control tokens of one tokenizer; renders and encodes conversations whose contents spell them as text.

    Args:
        tokenizer: A tokenizer as mlx-lm or transformers loads it.
        template: The text of its chat template.
        reasoning: The markup of the model's reasoning; None without any.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - transformers has no types
        template: str | None,
        reasoning: ReasoningFormat | None,
    ) -> None:
        self._tokenizer = unwrapped(tokenizer)
        added = getattr(self._tokenizer, "added_tokens_decoder", None) or {}
        self._ids = {str(token): index for index, token in added.items() if _is_control(token, template or "")}
        self._control = frozenset(self._ids.values())
        self._all = _Finder(frozenset(self._ids))
        # Clients send back assistant messages with the model's own reasoning and tool calls, whose markup is genuine.
        marks = {reasoning.start, reasoning.end} if reasoning else set()
        special = {str(token) for token in added.values() if token.special and str(token) in self._ids}
        self._in_answers = _Finder(frozenset(special - marks))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the control tokens, sorted."""
        return tuple(sorted(self._ids))

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], render: Render) -> Rendering:
        """Render a conversation, and locate the control tokens that its contents spell.

        Args:
            messages: Messages in the template's form.
            tools: Tools in the template's form.
            render: Renders both; called a second time where contents spell control tokens.

        Raises:
            ValidationError: The conversation uses nearly all private-use characters.
        """
        text = render(messages, tools)
        spelled: dict[str, str] = {}
        collect = functools.partial(self._replaced, replace=lambda token: spelled.setdefault(token, token))
        for message in messages:
            self._replaced_message(message, collect)
        collect(tools, self._all)
        if not spelled:
            return Rendering(text)
        used = set(text)
        unused = (char for char in map(chr, _PRIVATE) if char not in used)
        masks = dict(zip(spelled, unused, strict=False))
        if len(masks) < len(spelled):
            raise ValidationError.in_field("messages", "use nearly all private characters of Unicode")
        mask = functools.partial(self._replaced, replace=masks.__getitem__)
        try:
            masked = render([self._replaced_message(each, mask) for each in messages], mask(tools, self._all))
        except (ValidationError, *LIBRARY_ERRORS):
            # The template interprets these texts and accepts no others, so they are its own markup.
            return Rendering(text)
        return self._restored(text, masked, {char: token for token, char in masks.items()})

    def encode(self, rendering: Rendering) -> list[int]:
        """Return the tokens of a rendered conversation; control tokens that contents spell are encoded as text."""
        text, spans = rendering.text, self._all.find(rendering.text)
        markup = [span for span in spans if not _overlaps(span, rendering.spelled)]
        plain = self._plain(text)
        cut = self._encode_cut(text, [start + 1 for start, _ in rendering.spelled])
        safe = sum(token in self._control for token in cut) <= len(markup)
        if safe and self._tokenizer.decode(cut) == self._tokenizer.decode(plain):
            return cut
        # Some tokenizers change pieces, for example by a space at the beginning of every text.
        renamed = self._renamed
        if renamed is not None and renamed.encode(text, spans) == plain:
            return renamed.encode(text, markup)
        # The rest of a spelled token may itself begin with a control token; its single characters cannot.
        return (
            cut
            if safe
            else self._encode_cut(text, [at for span in rendering.spelled for at in range(span[0], span[1] + 1)])
        )

    def all_spelled(self, text: str) -> Rendering:
        """Return a rendering of plain text, in which every control token is spelled."""
        return Rendering(text, self._all.find(text))

    def _replaced_message(self, message: dict[str, Any], replaced: Callable[[Any, _Finder], Any]) -> dict[str, Any]:
        in_content = self._in_answers if message.get("role") == "assistant" else self._all
        return {key: replaced(value, in_content if key == "content" else self._all) for key, value in message.items()}

    def _replaced(self, value: Any, finder: _Finder, replace: Callable[[str], str]) -> Any:  # noqa: ANN401 - JSON
        """Return a JSON value with every control token in its strings replaced."""
        if isinstance(value, str):
            parts, end = [], 0
            for start, after in finder.find(value):
                parts += [value[end:start], replace(value[start:after])]
                end = after
            return "".join([*parts, value[end:]]) if parts else value
        if isinstance(value, Mapping):
            return {
                self._replaced(key, finder, replace): self._replaced(each, finder, replace)
                for key, each in value.items()
            }
        return [self._replaced(each, finder, replace) for each in value] if isinstance(value, list) else value

    def _restored(self, text: str, masked: str, tokens: Mapping[str, str]) -> Rendering:
        """Return the rendering with the control tokens in place of their masks."""
        parts: list[str] = []
        spans, length, end = [], 0, 0
        for match in re.finditer(f"[{''.join(tokens)}]", masked):
            token = tokens[match[0]]
            parts += [masked[end : match.start()], token]
            start = length + match.start() - end
            length = start + len(token)
            spans.append((start, length))
            end = match.end()
        restored = "".join([*parts, masked[end:]])
        if restored != text and len(self._all.find(text)) == len(self._all.find(masked)):
            # The template escapes or drops them, so the text spells none.
            return Rendering(text)
        return Rendering(restored, tuple(spans))

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    @functools.cached_property
    def _renamed(self) -> "_RenamedTokenizer | None":
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            return _RenamedTokenizer(backend, self._ids)
        return None

    def _encode_cut(self, text: str, cuts: Sequence[int]) -> list[int]:
        """Return the tokens of a text that is tokenized in pieces, cut at these offsets."""
        pieces = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [token for start, end in pieces for token in self._plain(text[start:end])]


class _RenamedTokenizer:
    """A copy of a tokenizer in which the control tokens have secret texts.

    Args:
        backend: The tokenizer.
        control: Its control tokens.
    """

    def __init__(self, backend: Tokenizer, control: Mapping[str, int]) -> None:
        secret = secrets.token_hex(16)
        self._names = {token: f"\ue000{secret}{index}\ue001" for token, index in control.items()}
        document = json.loads(backend.to_str())
        originals = {token["content"]: token["id"] for token in document["added_tokens"]}
        for token in document["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        _rename(document["model"], self._names)
        self._copy = Tokenizer.from_str(json.dumps(document))
        # Tokens in the model's vocabulary keep their ids; other added tokens may get new ones.
        renamed = ((self._copy.token_to_id(self._names.get(token, token)), index) for token, index in originals.items())
        self._ids = {copied: index for copied, index in renamed if copied is not None}

    def encode(self, text: str, markup: Sequence[tuple[int, int]]) -> list[int]:
        """Return the tokens of a text in which only the spans in ``markup`` are control tokens."""
        parts, end = [], 0
        for start, after in markup:
            parts += [text[end:start], self._names[text[start:after]]]
            end = after
        ids = self._copy.encode("".join([*parts, text[end:]]), add_special_tokens=False).ids
        return [self._ids.get(token, token) for token in ids]


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens in a serialized model, so that no text is merged or looked up to one of them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]


def _is_control(token: Any, template: str) -> bool:  # noqa: ANN401 - tokenizers' AddedToken
    """Whether an added token is markup, not ordinary text such as a run of spaces."""
    text = str(token)
    if is_task_mark(text) or len(text) < _SHORTEST or text.isspace() or text.isalnum() or _BYTE.fullmatch(text):
        return False
    if token.special:
        return True
    enclosed = any(text.startswith(opening) and text.endswith(closing) for opening, closing in _BRACKETS)
    partner = f"{text[0]}{text[2:]}" if text[1] == "/" else f"{text[0]}/{text[1:]}"
    return enclosed and (text in template or partner in template)


def _overlaps(span: tuple[int, int], others: Spans) -> bool:
    return any(start < span[1] and span[0] < end for start, end in others)
