"""In-memory double of the model tokenizer: tokens 0 to 255 are bytes, 256 and 257 are control tokens.

tokenizer = InMemoryModelTokenizer()
tokenizer.encode(handle, "hi<|end|>").tokens                        # (104, 105, 256)
tokenizer.encode(handle, "<|end|>", parse_special=False).tokens     # (60, 124, 101, …)
"""

import re

import attrs

from mlxk.application.ports.model_tasks import (
    EndToken,
    FittedConversation,
    FormatReport,
    ModelTokenizer,
    TokenizedText,
    TokenSpelling,
)
from mlxk.domain.errors import ContextLengthError, ValidationError
from mlxk.domain.generation.conversation import Adaptation, Conversation
from mlxk.domain.generation.request import GenerationRequest, TokenIds
from mlxk.domain.models.model import ModelHandle

END, BEGIN = "<|end|>", "<|begin|>"
CONTROL = {END: 256, BEGIN: 257}
_NAMES = {token: text for text, token in CONTROL.items()}
SPELLED = Adaptation("special-tokens-as-text", "Control tokens that messages spell out are text.")
_CONTROL = re.compile("|".join(map(re.escape, CONTROL)))


class InMemoryModelTokenizer(ModelTokenizer):
    """Tokenizes bytes, and renders conversations as lines that end with a control token.

    Args:
        context_length: Tokens of the context window.
    """

    def __init__(self, context_length: int = 8192) -> None:
        self.requests: list[GenerationRequest] = []
        self._context_length = context_length

    def render(self, request: GenerationRequest, *, opens_answer: bool = True) -> TokenizedText:
        request.validate()
        self.requests.append(request)
        prompt = request.prompt
        if isinstance(prompt, tuple):
            return self._decoded(prompt, "prompt")
        if isinstance(prompt, str):
            return self.encode(request.model, prompt, add_special=True)
        return self._conversation(prompt, request.parse_special, opens_answer)

    def encode(
        self, model: ModelHandle, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> TokenizedText:
        tokens = [CONTROL[BEGIN]] if add_special and not text.startswith(BEGIN) else []
        tokens += _encoded(text) if parse_special else list(text.encode())
        return self._result(text, tokens)

    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        return self._decoded(tokens, "tokens")

    def report(self, model: ModelHandle) -> FormatReport:
        end = EndToken(CONTROL[END], END, ("tokenizer", "template"))
        greeting = FittedConversation("one message", ())
        return FormatReport(True, None, (), False, (), (), (end,), tuple(sorted(CONTROL)), (greeting,), None, ())

    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        return tuple(TokenSpelling(_NAMES.get(token, chr(token)), _bytes(token)) for token in tokens)

    def _conversation(self, conversation: Conversation, parse_special: bool, opens_answer: bool) -> TokenizedText:
        text, tokens = "", []
        for message in conversation.messages:
            spelled = f"{message.role.value}: {message.content}"
            text += f"{spelled}{END}"
            tokens += [*(_encoded(spelled) if parse_special else spelled.encode()), CONTROL[END]]
        opening = "assistant: " if opens_answer else ""
        found = self._result(text + opening, [*tokens, *opening.encode()])
        forged = any(_CONTROL.search(message.content) for message in conversation.messages)
        return attrs.evolve(found, adaptations=(SPELLED,)) if forged and not parse_special else found

    def _decoded(self, tokens: TokenIds, field: str) -> TokenizedText:
        unknown = next((token for token in tokens if not 0 <= token <= max(CONTROL.values())), None)
        if unknown is not None:
            raise ValidationError.in_field(field, f"names token {unknown}; the model has tokens 0 to 257")
        return TokenizedText(b"".join(map(_bytes, tokens)).decode("utf-8", "replace"), tokens, self._context_length)

    def _result(self, text: str, tokens: list[int]) -> TokenizedText:
        if len(tokens) > self._context_length:
            raise ContextLengthError(f"The prompt has {len(tokens)} tokens, of {self._context_length}.")
        return TokenizedText(text, tuple(tokens), self._context_length)


def _encoded(text: str) -> list[int]:
    tokens, end = [], 0
    for match in _CONTROL.finditer(text):
        tokens += [*text[end : match.start()].encode(), CONTROL[match[0]]]
        end = match.end()
    return [*tokens, *text[end:].encode()]


def _bytes(token: int) -> bytes:
    return _NAMES[token].encode() if token in _NAMES else bytes([token])
