"""Images over HTTP: data URLs, tables, numbers that last, chunks, placeholders, and what is refused."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from doubles.image_reader import InMemoryImageReader
from doubles.text_generator import InMemoryTextGenerator
from models.pictures import as_png, noise
from serving.parts import CHAT_MODEL, EYE, VISION, Parts
from serving.running import RunningServer, events_of, read_all

from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.conversation import Conversation, Role
from mlxk.domain.generation.image_table import MARKER
from mlxk.domain.generation.media import MAX_IMAGE_BYTES, DecodedImage
from mlxk.domain.generation.media_facts import ImageFacts
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.settings import ServerSettings

DAMAGED = 6
"""The one that cannot be decoded."""
PHOTO = 5
"""The one with EXIF metadata."""
PNG = [as_png(noise(seed, 4, 4)) for seed in range(7)]
Json = dict[str, Any]


class Eye:
    """A server with a model that looks at images and remembers what it was asked."""

    def __init__(self, chunk: int = 1, **settings: bool) -> None:
        self.asked: list[GenerationRequest] = []
        generator = InMemoryTextGenerator(self._answer)
        photo = {hashlib.sha256(PNG[PHOTO]).hexdigest(): ImageFacts(camera="Apple iPhone SE")}
        decoder = InMemoryImageReader({hashlib.sha256(PNG[DAMAGED]).hexdigest()}, photo)
        server = ServerSettings(chunk=chunk, **{"image_metadata": True, **settings})
        self.server = RunningServer(Parts(generator, server, models={EYE: VISION}, images=decoder))

    def _answer(self, request: GenerationRequest) -> tuple[str | MlxkError, ...]:
        self.asked.append(request)
        if "fail" in turns(request)[-1].content:
            return ("Half", ExecutionError("It broke."))
        if "Where" in turns(request)[-1].content:
            return ("A <|ref|>cat<|/ref|><|det|>[[0, 0,", " 999, 333]]<|/det|>", " and <loc0000><loc0000>")
        return ("Answer ", f"{len(self.asked)}.")

    def post(self, *messages: Json, model: str = EYE, **fields: Any) -> tuple[int, Any]:
        body = {"model": model, "messages": list(messages), **fields}
        status, _, answer = self.server.post("/v1/chat/completions", body)
        return status, answer

    def content(self, *messages: Json, **fields: Any) -> str:
        status, answer = self.post(*messages, **fields)
        assert status == 200, answer
        return str(answer["choices"][0]["message"]["content"])


@pytest.fixture
def eye() -> Iterator[Eye]:
    found = Eye()
    with found.server:
        yield found


def turns(request: GenerationRequest) -> tuple[Any, ...]:
    assert isinstance(request.prompt, Conversation)
    return request.prompt.messages


def image(index: int, kind: str = "png") -> Json:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(PNG[index]).decode()}"},
    }


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def user(*parts: Json | str) -> Json:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(said: str) -> Json:
    return {"role": "assistant", "content": said}


def rows(content: str) -> list[str]:
    return [line.split("|")[1].strip() for line in content.splitlines() if "| image_" in line]


def test_an_image_is_shown_and_a_table_stands_before_the_answer(eye: Eye) -> None:
    content = eye.content({"role": "system", "content": "Be brief."}, user("What is this?", image(0)))
    table, _, answer = content.partition("\n\n</details>\n\n")
    assert table.startswith("<details>\n<summary>📸 Image Metadata (1 image)</summary>\n\n" + MARKER)
    assert answer == "Answer 1."
    (request,) = eye.asked
    assert [turn.role for turn in turns(request)] == [Role.SYSTEM, Role.USER]
    assert [type(part) for part in turns(request)[-1].parts] == [str, DecodedImage]
    assert (request.settings.temperature, request.backends[0]) == (0.0, "mlx-vlm")


CAT = {"label": "cat", "kind": "box", "points": [[0.0, 0.0], [1.0, 0.3333]]}


@pytest.mark.parametrize("fields", [{}, {"n": 2, "temperature": 1}, {"logprobs": True}, {"stop": ["END"]}])
def test_points_and_boxes_of_an_answer_about_a_picture_are_told_apart(fields: Json, eye: Eye) -> None:
    status, answer = eye.post(user("Where is the cat?", image(0)), **fields)
    assert status == 200
    assert [choice["message"]["regions"] for choice in answer["choices"]] == [[CAT]] * len(answer["choices"])
    assert all("<|det|>[[0, 0, 999, 333]]" in choice["message"]["content"] for choice in answer["choices"])
    body = {"model": EYE, "messages": [user("Where is the cat?", image(0))], "stream": True, **fields}
    choices = [
        choice
        for chunk in events_of(read_all(eye.server.raw("/v1/chat/completions", body)))[:-1]
        for choice in chunk["choices"]
    ]
    told = [choice for choice in choices if "regions" in choice["delta"]]
    assert [(each["delta"]["regions"], each["finish_reason"]) for each in told] == [([CAT], "stop")] * len(told)
    assert len(told) == fields.get("n", 1)


def test_answers_without_a_picture_or_a_place_have_no_regions(eye: Eye) -> None:
    for asked, model in ((user("What?", image(0)), EYE), (user("Where?"), EYE), (user("Where?"), CHAT_MODEL)):
        status, answer = eye.post(asked, model=model)
        assert status == 200
        assert "regions" not in answer["choices"][0]["message"]


FACTS = "[Camera: Apple iPhone SE]\n\nWhat?"
CASES: list[tuple[dict[str, bool], Json, bool, str]] = [
    ({"image_metadata": False}, {}, False, FACTS),
    ({"image_metadata": False}, {"metadata": None}, False, FACTS),
    ({"image_metadata": False}, {"metadata": {}}, False, FACTS),
    ({"image_metadata": False}, {"metadata": {"run": "7"}}, False, FACTS),
    ({"image_metadata": False}, {"metadata": True}, True, FACTS),
    ({"image_metadata": False}, {"metadata": False}, False, "What?"),
    ({"image_metadata": True}, {}, True, FACTS),
    ({"image_metadata": True}, {"metadata": False}, False, "What?"),
    ({"image_metadata": True, "exif_metadata": False}, {}, False, FACTS),
    ({"image_metadata": True, "exif_metadata": False}, {"metadata": True}, False, FACTS),
]
"""Settings, fields, whether there is a table, and what the model gets; the container turns facts off."""


@pytest.mark.parametrize(("settings", "fields", "has_table", "prompt"), CASES)
def test_the_answer_is_the_models_words_unless_the_table_is_asked_for(
    settings: dict[str, bool], fields: Json, has_table: bool, prompt: str
) -> None:
    eye = Eye(**settings)
    with eye.server:
        whole = eye.content(user("What?", image(PHOTO)), **fields)
        body = {"model": EYE, "messages": [user("What?", image(PHOTO))], "stream": True, **fields}
        events = events_of(read_all(eye.server.raw("/v1/chat/completions", body)))
        several = eye.content(user("What?", image(PHOTO), image(0)), **fields)
    streamed = "".join(
        each["choices"][0]["delta"].get("content") or "" for each in events if each != "[DONE]" and each["choices"]
    )
    assert (MARKER in whole, MARKER in streamed, several.count(MARKER)) == (has_table, has_table, 2 * has_table)
    if not has_table:
        assert (whole, streamed, several) == ("Answer 1.", "Answer 2.", "Answer 3.\n\nAnswer 4.")
    assert turns(eye.asked[0])[-1].content == prompt


@pytest.mark.parametrize("metadata", ["true", 1, [], ["a"]])
def test_metadata_is_an_object_or_a_boolean(eye: Eye, metadata: Any) -> None:
    status, answer = eye.post(user("What?", image(0)), metadata=metadata)
    assert (status, (answer.get("error") or {}).get("param")) in ((400, "metadata"), (200, None))
    assert metadata == [] or status == 400


def test_sampling_is_as_asked(eye: Eye) -> None:
    eye.content(user(image(0), "What?"), temperature=0.7, top_p=0.5, max_tokens=7, seed=3)
    settings = eye.asked[0].settings
    assert (settings.temperature, settings.top_p, settings.max_tokens, settings.seed) == (0.7, 0.5, 7, 3)


def test_an_image_without_words_asks_for_a_description(eye: Eye) -> None:
    eye.content(user(image(0)))
    assert turns(eye.asked[0])[0].content == "Describe the image."


def test_more_images_than_a_chunk_are_answered_chunk_by_chunk(eye: Eye) -> None:
    content = eye.content(
        {"role": "system", "content": "Be brief."},
        user("Hello"),
        assistant("Hi"),
        user(*(image(index) for index in range(5)), "Compare."),
        chunk=2,
    )
    summaries = [line for line in content.splitlines() if line.startswith("<summary>")]
    assert summaries == [
        "<summary>📸 Chunk 1/3: Images 1-2</summary>",
        "<summary>📸 Chunk 2/3: Images 3-4</summary>",
        "<summary>📸 Chunk 3/3: Image 5</summary>",
    ]
    assert rows(content) == ["1", "2", "3", "4", "5"]
    assert [f"Answer {number}." in content for number in (1, 2, 3)] == [True] * 3
    assert [[turn.role for turn in turns(each)] for each in eye.asked] == [[Role.SYSTEM, Role.USER]] * 3
    assert [len(turns(each)[-1].images) for each in eye.asked] == [2, 2, 1]
    assert turns(eye.asked[1])[-1].content == "Image 3:\nImage 4:\nCompare."


def test_the_operators_chunk_holds_unless_the_request_has_its_own() -> None:
    eye = Eye(chunk=3)
    shown = user(*(image(index) for index in range(3)), "Compare.")
    with eye.server:
        assert "Image Metadata (3 images)" in eye.content(shown)
        assert "Chunk 1/3" in eye.content(shown, chunk=1)


def test_a_stream_says_the_same_as_an_answer_in_one_piece(eye: Eye) -> None:
    shown = user(*(image(index) for index in range(3)), "Compare.")
    whole = eye.content(shown)
    eye.asked.clear()
    body = {"model": EYE, "messages": [shown], "stream": True, "stream_options": {"include_usage": True}}
    status, _, data = eye.server.request(
        "POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    assert status == 200
    events = [line[6:] for line in data.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    said = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(said) == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"
    tokens = [each.usage.completion_tokens for each in ends(eye)]
    assert chunks[-1]["usage"]["completion_tokens"] == sum(tokens)


def ends(eye: Eye) -> list[Any]:
    """Return how each answer that was asked for ends, asked again."""
    again = [list(InMemoryTextGenerator(lambda _: ("Answer ", "1.")).submit(each))[-1] for each in eye.asked]
    assert len(again) == 3
    return again


def test_images_keep_their_numbers_through_a_conversation(eye: Eye) -> None:
    first = user("What?", image(0))
    answered = eye.content(first)
    second = user("And these?", image(1), image(0))
    content = eye.content(first, assistant(answered), second, chunk=5)
    assert rows(content) == ["2", "1"]
    third = eye.content(first, assistant(answered), second, assistant(content), user(image(2)))
    assert rows(third) == ["3"]


def test_numbers_survive_when_a_client_drops_the_images_themselves(eye: Eye) -> None:
    answered = eye.content(user(image(0), image(1)), chunk=2)
    later = eye.content(user("[images]"), assistant(answered), user(image(1), image(3)), chunk=2)
    assert rows(later) == ["2", "3"]


def test_the_model_sees_earlier_images_but_not_our_tables(eye: Eye) -> None:
    answered = eye.content(user(image(0), "What?"))
    content = eye.content(user(image(0), "What?"), assistant(answered), user("What colour?"))
    assert content == "Answer 2."
    opening, said, asked = turns(eye.asked[-1])
    assert len(opening.images) == 1
    assert (said.content, asked.content) == ("Answer 1.", "What colour?")
    assert opening == turns(eye.asked[0])[0]


def test_a_text_model_is_told_that_there_were_images(eye: Eye) -> None:
    history = (user("Look:", image(0), image(1)), assistant("Nice."), user("Thanks!"))
    assert eye.content(*history, model=CHAT_MODEL) == "Answer 1."
    assert [turn.content for turn in turns(eye.asked[0])] == [
        "Look:\n\n[2 image(s) were attached]",
        "Nice.",
        "Thanks!",
    ]


def test_images_for_a_text_model_are_refused(eye: Eye) -> None:
    status, answer = eye.post(user("Look:", image(0)), model=CHAT_MODEL)
    assert (status, answer["error"]["type"]) == (422, "capability_not_supported")
    assert answer["error"]["param"] == "messages[0].content[1]"
    assert eye.asked == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/a.png", "is an address, which this server does not read"),
        ("http://127.0.0.1:8000/health", "is an address, which this server does not read"),
        ("file:///etc/passwd", "is the path of a file, which this server does not read"),
        ("/etc/passwd", "is the path of a file, which this server does not read"),
        ("shape.png", "must be a data URL"),
        ("", "cannot be empty"),
        ("data:text/html;base64,PGh0bWw+", "is not an image of a known format"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "is in SVG, which is not supported"),
        ("data:image/png,AAAA", "must be data:<type>;base64,<data>"),
        ("data:image/png;base64,", "the image is empty"),
        ("data:image/png;base64,@@@@", "is not valid base64"),
        ("data:image/png;base64,AAAAA", "is not valid base64"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "is not valid base64"),
        ("data:image/png;base64,aGVsbG8gd29ybGQ=", "is not an image of a known format"),
    ],
)
def test_only_images_in_the_request_itself_are_read(eye: Eye, url: str, said: str) -> None:
    status, answer = eye.post(user("Look:", {"type": "image_url", "image_url": {"url": url}}))
    assert (status, answer["error"]["type"]) == (400, "validation_error")
    assert answer["error"]["param"] == "messages[0].content[1].image_url.url"
    assert said in answer["error"]["message"]
    assert eye.asked == []


def test_the_type_is_what_the_content_says(eye: Eye) -> None:
    assert "image_" in eye.content(user(image(0, kind="JPG")))
    wrapped = image(0)
    url = wrapped["image_url"]["url"]
    wrapped["image_url"]["url"] = url[:60] + "\n" + url[60:]
    assert ".png |" in eye.content(user(wrapped))


def test_an_image_that_is_too_large_is_refused(eye: Eye) -> None:
    huge = base64.b64encode(PNG[0].ljust(MAX_IMAGE_BYTES + 1, b"\0")).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{huge}"}}
    status, answer = eye.post(user("Look:", part))
    assert status in (400, 413)
    assert "MiB" in answer["error"]["message"] or status == 413


def test_a_damaged_image_is_named_by_the_field_it_stands_in(eye: Eye) -> None:
    status, answer = eye.post(user(image(0)), assistant("Nice."), user("Look:", image(1), image(DAMAGED)), chunk=2)
    place = "messages[2].content[2].image_url.url"
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "validation_error", place)
    assert answer["error"]["message"] == f"{place}: is damaged, or no complete PNG image"
    assert [problem["param"] for problem in answer["error"]["detail"]["problems"]] == [place]


def test_a_damaged_image_in_a_later_chunk_is_named_in_the_stream(eye: Eye) -> None:
    body = {"model": EYE, "messages": [user(image(0), image(DAMAGED))], "stream": True}
    events = events_of(read_all(eye.server.raw("/v1/chat/completions", body)))
    assert events[-1]["error"]["param"] == "messages[0].content[1].image_url.url"


def test_a_failure_before_anything_was_said_is_an_error_of_its_own(eye: Eye) -> None:
    status, answer = eye.post(user(image(0), "fail"))
    assert (status, answer["error"]["type"]) == (500, "execution_error")


def test_several_answers_to_several_chunks_are_refused(eye: Eye) -> None:
    status, answer = eye.post(user(image(0), image(1)), n=2)
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "parameter_not_supported", "n")
    status, answer = eye.post(user(image(0), image(1)), n=2, chunk=2)
    assert [choice["message"]["content"].count(MARKER) for choice in answer["choices"]] == [1, 1]


@pytest.mark.parametrize("chunk", [0, 6, "2", 1.5])
def test_a_chunk_of_another_size_is_refused(eye: Eye, chunk: Any) -> None:
    status, answer = eye.post(user(image(0)), chunk=chunk)
    assert (status, answer["error"]["param"]) == (400, "chunk")


def test_an_answer_that_has_to_be_json_has_no_table(eye: Eye) -> None:
    assert eye.content(user(image(0)), response_format={"type": "json_object"}) == "Answer 1."
