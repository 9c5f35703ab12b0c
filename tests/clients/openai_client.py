"""OpenAI's own Python SDK: chat, streams, tools, typed answers, completions, models, errors, asynchronous too."""

import asyncio
import os
from typing import Literal

import openai
from pydantic import BaseModel

ADDRESS = os.environ["MLXK_BASE_URL"]
QUESTION = [{"role": "user", "content": "What is mlxk?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class City(BaseModel):
    """A typed answer."""

    name: Literal["Paris", "Rome"]
    large: bool


def check_answers(sdk: openai.OpenAI) -> None:
    """Ask in every way."""
    whole = sdk.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert "knife for local models" in whole.choices[0].message.content
    chunks = list(
        sdk.chat.completions.create(
            model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    counts = {"prompt_tokens", "completion_tokens", "total_tokens"}  # how many of them were cached may differ
    assert chunks[-1].usage.model_dump(include=counts) == whole.usage.model_dump(include=counts)
    calling = sdk.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        temperature=0,
    )
    assert calling.choices[0].finish_reason == "tool_calls"
    assert calling.choices[0].message.tool_calls[0].function.name == "get_weather"
    assert "demo" in [model.id for model in sdk.models.list()]
    assert sdk.completions.create(model="demo", prompt="mlxk", max_tokens=3).choices[0].finish_reason == "length"


def check_typed_answer(sdk: openai.OpenAI) -> None:
    """Ask for a schema."""
    typed = sdk.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": "Name a city."}],
        response_format=City,
        max_tokens=600,
        seed=1,
    )
    assert isinstance(typed.choices[0].message.parsed, City)


def check_errors(sdk: openai.OpenAI) -> None:
    """Ask for what there is not."""
    try:
        sdk.chat.completions.create(model="no/such", messages=QUESTION)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("an unknown model was answered")


async def check_asynchronous() -> None:
    """Ask many at once."""
    async with openai.AsyncOpenAI(base_url=ADDRESS) as sdk:
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(model="demo", messages=QUESTION, temperature=0) for _ in range(16))
        )
    assert len({answer.choices[0].message.content for answer in answers}) == 1


if __name__ == "__main__":
    client = openai.OpenAI(base_url=ADDRESS)
    check_answers(client)
    check_typed_answer(client)
    check_errors(client)
    asyncio.run(check_asynchronous())
