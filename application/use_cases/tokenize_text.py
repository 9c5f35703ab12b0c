"""Show prompts as a model gets them, and convert between text and tokens; for the terminal and every HTTP API.

The path is that of a completion up to the prompt: resolve, probe, policy, then the tokenizer alone. Memory is not
judged, since no weights are loaded.
"""

from collections.abc import Sequence

import attrs

from mlxk.application.generation_options import GenerationOptions, Prompt
from mlxk.application.ports.model_tasks import FormatReport, ModelTokenizer, TokenizedText, TokenSpelling
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.domain.generation.request import TokenIds
from mlxk.domain.models.model import ModelDetails, ModelHandle


@attrs.frozen
class TokenizeText:
    """Renders prompts, and encodes and decodes text."""

    generate: GenerateText
    tokenizer: ModelTokenizer

    def __call__(
        self, model: str | ModelDetails, prompt: Prompt, options: GenerationOptions, *, opens_answer: bool = True
    ) -> Sequence[TokenizedText]:
        """Return what a model would get: one prompt, or one for each chunk of images.

        Args:
            model: See ``GenerateText``.
            prompt: See ``GenerateText``.
            options: See ``GenerateText``; what steers sampling has no effect.
            opens_answer: See ``ModelTokenizer.render``.

        Raises:
            MlxkError: See ``GenerateText`` and ``ModelTokenizer.render``.
        """
        requests = self.generate.requests(model, prompt, options)
        return tuple(self.tokenizer.render(request, opens_answer=opens_answer) for request in requests)

    def encode(self, model: ModelHandle, text: str, *, add_special: bool, parse_special: bool) -> TokenizedText:
        """Return the tokens of a text; see ``ModelTokenizer.encode``."""
        return self.tokenizer.encode(model, text, add_special=add_special, parse_special=parse_special)

    def decode(self, model: ModelHandle, tokens: TokenIds) -> TokenizedText:
        """Return the text of tokens; see ``ModelTokenizer.decode``."""
        return self.tokenizer.decode(model, tokens)

    def report(self, model: ModelHandle) -> FormatReport:
        """Return what was found of the model's formats; see ``ModelTokenizer.report``."""
        return self.tokenizer.report(model)

    def spell(self, model: ModelHandle, tokens: TokenIds) -> tuple[TokenSpelling, ...]:
        """Return the spelling of each token; see ``ModelTokenizer.spell``."""
        return self.tokenizer.spell(model, tokens)
