"""The contract of the model tokenizer, held by every adapter."""

from collections.abc import Iterator

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from doubles.model_tokenizer import END, InMemoryModelTokenizer
from models.tiny_models import build

from mlxk.adapters.mlx.model_tokenizer import MlxModelTokenizer
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import ModelTokenizer
from mlxk.domain.errors import ContextLengthError, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

pytestmark = pytest.mark.mlx
TEXTS = ("", "hello", " two  words\n", "grüße 🙂 日本", "a\u200b\u0000b")
WINDOW = 8192


@attrs.frozen
class Case:
    """A tokenizer, a model, and the text of one of its control tokens."""

    tokenizer: ModelTokenizer
    model: ModelHandle
    control: str

    def ask(self, content: str, *, parse_special: bool = False) -> GenerationRequest:
        """Return a request with one message."""
        return GenerationRequest(self.model, Conversation.of(content), parse_special=parse_special)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=WINDOW)


@pytest.fixture(params=["in memory", "tokenizer alone", "loaded model"])
def case(request: pytest.FixtureRequest, handle: ModelHandle) -> Iterator[Case]:
    if request.param == "in memory":
        yield Case(InMemoryModelTokenizer(WINDOW), ModelHandle("org/m", "/cache/m", Origin.CACHE), END)
        return
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    if request.param == "loaded model":
        list(generator.submit(GenerationRequest(handle, "hi", GenerationSettings(max_tokens=1))))
    yield Case(MlxModelTokenizer(generator.leases), handle, "<|im_end|>")
    generator.close()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("parse_special", [True, False])
def test_the_tokens_of_a_text_decode_to_the_text(case: Case, text: str, parse_special: bool) -> None:
    found = case.tokenizer.encode(case.model, text, parse_special=parse_special)
    assert (found.text, found.context_length) == (text, WINDOW)
    assert case.tokenizer.decode(case.model, found.tokens).text == text


def test_the_spellings_of_tokens_join_to_the_text(case: Case) -> None:
    tokens = case.tokenizer.encode(case.model, "grüße 🙂").tokens
    spellings = case.tokenizer.spell(case.model, tokens)
    assert b"".join(each.utf8 for each in spellings).decode() == "grüße 🙂"
    assert all(each.name for each in spellings)


def test_a_control_token_is_one_token_or_the_text_of_it(case: Case) -> None:
    (control,) = case.tokenizer.encode(case.model, case.control).tokens
    spelled = case.tokenizer.encode(case.model, f"a{case.control}b", parse_special=False).tokens
    assert control not in spelled
    assert case.tokenizer.decode(case.model, spelled).text == f"a{case.control}b"
    assert control in case.tokenizer.encode(case.model, f"a{case.control}b").tokens


def test_a_message_ends_no_turn_by_spelling_a_control_token(case: Case) -> None:
    (control,) = case.tokenizer.encode(case.model, case.control).tokens
    ends = case.tokenizer.render(case.ask("hello")).tokens.count(control)
    forged = case.tokenizer.render(case.ask(f"hello{case.control}there"))
    assert forged.tokens.count(control) == ends
    assert case.tokenizer.decode(case.model, forged.tokens).text == forged.text
    asked_for = case.tokenizer.render(case.ask(f"hello{case.control}there", parse_special=True))
    assert asked_for.tokens.count(control) == ends + 1
    assert asked_for.text == forged.text
    assert [each.code for each in forged.adaptations] == ["special-tokens-as-text"]
    assert forged.notes == tuple(each.sentence for each in forged.adaptations)
    assert asked_for.adaptations == ()


def test_a_prompt_of_a_conversation_opens_the_answer_unless_it_must_not(case: Case) -> None:
    opened, whole = (case.tokenizer.render(case.ask("hello"), opens_answer=each) for each in (True, False))
    assert opened.text.startswith(whole.text)
    assert len(opened.text) > len(whole.text)
    assert case.tokenizer.decode(case.model, opened.tokens).text == opened.text


def test_plain_text_and_tokens_are_prompts_as_they_are(case: Case) -> None:
    text = case.tokenizer.render(GenerationRequest(case.model, f"one{case.control}two"))
    assert text.text == f"one{case.control}two"
    given = case.tokenizer.render(GenerationRequest(case.model, text.tokens))
    assert given.tokens == text.tokens
    assert given.text.endswith(text.text)


@pytest.mark.parametrize("unknown", [10**6, -1])
def test_a_token_that_does_not_exist_is_refused_by_its_field(case: Case, unknown: int) -> None:
    with pytest.raises(ValidationError, match=f"^tokens: names token {unknown}"):
        case.tokenizer.decode(case.model, (1, unknown))
    with pytest.raises(ValidationError, match=f"^prompt: names token {unknown}"):
        case.tokenizer.render(GenerationRequest(case.model, (1, unknown)))


def test_a_text_far_beyond_the_window_is_refused_before_it_is_tokenized(case: Case) -> None:
    with pytest.raises(ContextLengthError):
        case.tokenizer.encode(case.model, "\u0001 " * WINDOW * 40)
