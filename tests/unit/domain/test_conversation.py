"""Conversations as the doors make them."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle, Origin

HALF = b"\xff".decode("utf-8", "surrogateescape")


def test_a_system_prompt_comes_before_the_turn_and_an_empty_one_not_at_all() -> None:
    assert [each.role for each in Conversation.of("hi", "Be brief.").messages] == [Role.SYSTEM, Role.USER]
    assert [each.role for each in Conversation.of("hi", "").messages] == [Role.USER]


@pytest.mark.parametrize(
    ("prompt", "system", "named"), [(HALF, None, "prompt"), ("hi", HALF, "system"), ("\ud83d", None, "prompt")]
)
def test_what_is_not_text_is_refused_by_field(prompt: str, system: str | None, named: str) -> None:
    with pytest.raises(ValidationError, match=f"^{named}: .*UTF-8"):
        Conversation.of(prompt, system)


def test_a_plain_prompt_that_is_not_text_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"^prompt: .*UTF-8"):
        GenerationRequest(ModelHandle("demo", "/demo", Origin.BUILT_IN), HALF).validate()


def test_a_message_without_a_clip_needs_no_frames() -> None:
    message = Message.of_parts("Before.", DecodedImage(1, 1, bytes(3), "0"), "After.")
    assert message.with_frames_as_images() is message


def test_every_whole_character_is_text() -> None:
    assert Conversation.of("Grüße 😀 \ufffd\0").messages[0].content == "Grüße 😀 \ufffd\0"
