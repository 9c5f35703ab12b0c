"""Examples as tokens, rendered with the model's chat template as for generation, with the ranges to learn."""

import attrs

from mlxk.adapters.mlx.loading.text_model import LoadedTokenizer
from mlxk.adapters.mlx.prompting.control_tokens import Rendering
from mlxk.adapters.mlx.prompting.conversation_rendering import RenderingJob
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.tuning.examples import Example, ExampleKind
from mlxk.domain.tuning.training import ExampleLengths


@attrs.frozen
class EncodedExample:
    """An example as tokens."""

    tokens: tuple[int, ...]
    learned: tuple[tuple[int, int], ...]
    """Ranges of tokens to learn, such as answers: start, and end exclusive."""
    uncut: int
    """Number of tokens before truncation."""
    source: Example
    """The example that was encoded."""
    worse: "EncodedExample | None" = None
    """The same example with the rejected answer, for a pair."""

    @property
    def learned_tokens(self) -> int:
        """Number of tokens that are learned; nothing predicts the first token of a sequence."""
        return sum(end - max(start, 1) for start, end in self.learned)


class ExampleEncoder:
    """Encodes examples for a text model.

    Args:
        tokenizer: The model's.
        max_length: Maximum tokens of an example; the rest is cut off.
        mask_prompt: Whether only answers are learned; plain text is learned as a whole.
    """

    def __init__(self, tokenizer: LoadedTokenizer, max_length: int, *, mask_prompt: bool) -> None:
        self._renderer = tokenizer.renderer
        self._max_length, self._mask_prompt = max_length, mask_prompt
        inner = tokenizer.tokenizer
        self._end: int | None = inner.eos_token_id
        self._ends = frozenset(inner.eos_token_ids) | self._renderer.turn_ends
        self._templated = self._renderer.conversations.has_template

    def encode(self, example: Example) -> EncodedExample:
        """Return an example as tokens.

        Raises:
            ValidationError: Names the line: the template refuses the example, or truncation leaves nothing to learn.
        """
        if example.rejected is not None:
            worse = self.encode(example.worse)
            return attrs.evolve(self.encode(attrs.evolve(example, rejected=None)), source=example, worse=worse)
        try:
            tokens, learned = self._untruncated(example)
        except MlxkError as error:
            raise ValidationError(f"line {example.line}: {error.message}", hint=error.hint) from error
        if not self._mask_prompt:
            learned = [(0, len(tokens))]
        limit = self._max_length
        kept = tuple((start, min(end, limit)) for start, end in learned if max(start, 1) < min(end, limit))
        if not kept:
            raise ValidationError(
                f"line {example.line}: its {len(tokens)} tokens are cut to {limit}, and nothing is left to learn",
                hint="Allow more tokens, or shorten it.",
            )
        return EncodedExample(tuple(tokens[:limit]), kept, len(tokens), example)

    def _untruncated(self, example: Example) -> tuple[list[int], list[tuple[int, int]]]:
        if example.kind is ExampleKind.TEXT:
            tokens = self._ended(self._plain(example.text, begins=True))
            return tokens, [(0, len(tokens))]
        if self._templated:
            return self._conversation(example)
        if example.kind is ExampleKind.CHAT:
            raise ValidationError(
                "the model has no chat template for messages", hint="Write prompt and completion, or text."
            )
        prompt = self._plain(example.asked.messages[-1].content, begins=True)
        tokens = self._ended(prompt + self._plain(example.answer, begins=False))
        return tokens, [(len(prompt), len(tokens))]

    def _conversation(self, example: Example) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a conversation and the ranges of its answers.

        Earlier answers that the template changes or leaves out, such as their reasoning, are not learned.
        """
        conversation = self._with_media(example)
        tokens, messages = self._trimmed(self._rendered(conversation)), conversation.messages
        learned = []
        for index in example.learned:
            before = Conversation(messages[:index], example.conversation.tools)
            start = _common(tokens, self._rendered(before, opens=True))
            if index == len(messages) - 1:
                learned.append((start, len(tokens)))
                continue
            through = Conversation(messages[: index + 1], example.conversation.tools)
            learned.append((start, _common(tokens, self._trimmed(self._rendered(through)))))
        return tokens, learned

    def _with_media(self, example: Example) -> Conversation:
        return example.conversation

    def _rendered(self, conversation: Conversation, *, opens: bool = False) -> list[int]:
        return list(self._renderer.render(conversation, RenderingJob(opens_answer=opens)).tokens)

    def _plain(self, text: str, *, begins: bool) -> list[int]:
        return self._renderer.encode(Rendering(text), begins=begins)

    def _trimmed(self, tokens: list[int]) -> list[int]:
        """Cut a rendered conversation after the token that ends its last message, or add such a token."""
        last = next((at for at in range(len(tokens) - 1, -1, -1) if tokens[at] in self._ends), None)
        return self._ended(tokens) if last is None or last < len(tokens) - _MAX_AFTER_END else tokens[: last + 1]

    def _ended(self, tokens: list[int]) -> list[int]:
        return tokens if self._end is None or tokens[-1:] == [self._end] else [*tokens, self._end]


_MAX_AFTER_END = 3
"""Maximum number of tokens, such as a newline, that a template writes after the end of a message."""


def _common(one: list[int], other: list[int]) -> int:
    """Return the length of the common prefix of two lists."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def measured(examples: list[EncodedExample]) -> ExampleLengths:
    """Return statistics of the lengths of examples."""
    encoded = [each for example in examples for each in (example, example.worse) if each is not None]
    cut = tuple(dict.fromkeys(each.source.line for each in encoded if each.uncut > len(each.tokens)))
    return ExampleLengths(
        longest=max(len(each.tokens) for each in encoded),
        total=sum(len(each.tokens) for each in encoded),
        learned=sum(each.learned_tokens for each in encoded),
        cut=cut,
        longest_uncut=max(each.uncut for each in encoded),
    )
