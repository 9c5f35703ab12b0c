"""Texts as the tokens a model reads: its prefixes and control tokens, its window, and the tokens of clients.

Used by any thread; a lock keeps the tokenizer, whose settings are its state, to one at a time.
"""

import threading
from typing import TYPE_CHECKING

from mlxk.adapters.mlx.embedding.prompts import Prompts
from mlxk.domain.embedding import EmbeddingRequest, Input, TokenIds
from mlxk.domain.errors import ContextLengthError, ValidationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Turns inputs into tokens.

    Args:
        tokenizer: Of Hugging Face.
        prompts: The model's prefixes.
        window: Tokens that the model reads.
        vocabulary: Tokens that it knows.
        ends_with: The token that must stand last; None when none must.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Prompts,
        window: int,
        vocabulary: int,
        ends_with: int | None = None,
    ) -> None:
        self.window = window
        self.padding = int(tokenizer.pad_token_id or 0)
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._before, self._after = self._frame()
        if ends_with is not None and not self._after:
            self._after = (ends_with,)

    def encode(self, request: EmbeddingRequest) -> list[TokenIds]:
        """Return the tokens of every input, control tokens included.

        Raises:
            ValidationError: A token is none of the model's.
            ContextLengthError: An input is longer than the window, and is not to be cut.
            CapabilityError: The model takes no instruction.
        """
        prefix = self._prompts.prefix(request.settings)
        with self._lock:
            plain = [self._plain(each, prefix, index) for index, each in enumerate(request.inputs)]
        room = self.window - len(self._before) - len(self._after)
        if not request.settings.truncate:
            self._require_room(plain, room)
        return [(*self._before, *tokens[:room], *self._after) for tokens in plain]

    def _plain(self, text: Input, prefix: str, index: int) -> TokenIds:
        if isinstance(text, str):
            return self._tokens(prefix + text)
        wrong = next((token for token in text if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise ValidationError.in_field(
                f"input[{index}]",
                f"{wrong} is none of this model's {self._vocabulary} tokens",
                hint="Tokens are the model's own; send the text instead.",
            )
        before, after = len(self._before), len(self._after)
        framed = (
            text[:before] == self._before and text[len(text) - after :] == self._after and len(text) >= before + after
        )
        return text[before : len(text) - after] if framed else text

    def _tokens(self, text: str, control: bool = False) -> TokenIds:
        found = self._tokenizer(text, add_special_tokens=control, truncation=False, padding=False, verbose=False)
        return tuple(found["input_ids"])

    def _require_room(self, plain: list[TokenIds], room: int) -> None:
        index, longest = max(enumerate(map(len, plain)), key=lambda each: each[1])
        if longest > room:
            total = longest + len(self._before) + len(self._after)
            raise ContextLengthError(
                f"input[{index}] has {total} tokens; the model reads {self.window}.",
                hint="Shorten or divide it, or ask for it to be truncated.",
                detail={"prompt_tokens": total, "context_length": self.window},
            )

    def _frame(self) -> tuple[TokenIds, TokenIds]:
        """Return the control tokens that stand before and after every text."""
        plain, whole = self._tokens("a"), self._tokens("a", control=True)
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        return (), ()
