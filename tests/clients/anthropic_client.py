"""Anthropic's own Python SDK: messages, streams, tools in a loop, typed answers, counts, errors, asynchronous too."""

import asyncio
import os
from typing import Literal

import anthropic
from pydantic import BaseModel

ADDRESS = os.environ["MLXK_BASE_URL"].removesuffix("/v1")
QUESTION = [{"role": "user", "content": "What is mlxk?"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class City(BaseModel):
    """A typed answer."""

    name: Literal["Paris", "Rome"]
    large: bool


def check_answers(sdk: anthropic.Anthropic) -> None:
    """Ask in every way, with the fields that older versions of the SDK send too."""
    plain = {"model": "demo", "max_tokens": 200, "messages": QUESTION, "extra_body": {"temperature": 0}}
    whole = sdk.messages.create(**plain)
    assert "knife for local models" in whole.content[0].text
    assert whole.stop_reason == "end_turn"
    with sdk.messages.stream(**plain) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = sdk.messages.count_tokens(model="demo", messages=QUESTION)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    short = sdk.messages.create(model="demo", max_tokens=3, messages=QUESTION)
    assert short.stop_reason == "max_tokens"


def check_tools(sdk: anthropic.Anthropic) -> None:
    """Have a tool called, and send its result back."""
    turns = [{"role": "user", "content": "What is the weather in Paris?"}]
    common = {"model": "demo", "max_tokens": 200, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    calling = sdk.messages.create(messages=turns, **common)
    assert calling.stop_reason == "tool_use"
    call = next(block for block in calling.content if block.type == "tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "It is sunny, 21 degrees."}
    turns += [{"role": "assistant", "content": calling.content}, {"role": "user", "content": [result]}]
    with sdk.messages.stream(messages=turns, **common) as stream:
        assert stream.get_final_message().content


def check_typed_answer(sdk: anthropic.Anthropic) -> None:
    """Ask for a schema."""
    typed = sdk.messages.parse(
        model="demo", max_tokens=600, messages=[{"role": "user", "content": "Name a city."}], output_format=City
    )
    assert isinstance(typed.parsed_output, City)


def check_errors(sdk: anthropic.Anthropic) -> None:
    """Ask for what there is not, and say too much."""
    try:
        sdk.messages.create(model="no/such", max_tokens=1, messages=QUESTION)
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
        assert error.request_id
    else:
        raise AssertionError("an unknown model was answered")
    try:
        sdk.messages.create(model="demo", max_tokens=1, messages=[{"role": "user", "content": "word " * 9000}])
    except anthropic.BadRequestError as error:
        assert error.body["error"]["message"].startswith("prompt is too long: ")
    else:
        raise AssertionError("a prompt beyond the context window was answered")


async def check_asynchronous() -> None:
    """Ask many at once."""
    async with anthropic.AsyncAnthropic(base_url=ADDRESS, api_key="any") as sdk:
        asked = (
            sdk.messages.create(model="demo", max_tokens=200, messages=QUESTION, extra_body={"temperature": 0})
            for _ in range(16)
        )
        answers = await asyncio.gather(*asked)
    assert len({answer.content[0].text for answer in answers}) == 1


if __name__ == "__main__":
    client = anthropic.Anthropic(base_url=ADDRESS, api_key="any")
    check_answers(client)
    check_tools(client)
    check_typed_answer(client)
    check_errors(client)
    asyncio.run(check_asynchronous())
