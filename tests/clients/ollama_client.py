"""Ollama's own Python SDK: chat, streams, tools, thinking, schemas, images, generate, load and unload, listings."""

import asyncio
import base64
import json
import os
import struct
import zlib
from typing import Any, Literal

import ollama
from pydantic import BaseModel

HOST = os.environ["MLXK_BASE_URL"].removesuffix("/v1")
QUESTION = [{"role": "user", "content": "What is mlxk?"}]
COLD = {"temperature": 0}


class City(BaseModel):
    """A typed answer."""

    city: Literal["Paris", "Rome"]


def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: The city
    """
    return f"It is sunny in {city}."


def square() -> bytes:
    """Return a drawing of a blue square, as PNG."""
    rows = b"".join(
        b"\0" + b"".join(bytes((0, 0, 255) if 12 <= x < 52 and 12 <= y < 52 else (255, 255, 255)) for x in range(64))
        for y in range(64)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def check_listings(client: ollama.Client) -> None:
    """Look at what there is."""
    names = [model.model for model in client.list().models]
    assert {"demo:latest", "demo-vision:latest"} <= set(names), names
    shown = client.show("demo")
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities or ())
    assert (shown.modelinfo or {})["general.architecture"] == "llama"


def check_chat(client: ollama.Client) -> None:
    """Ask in every way."""
    whole = client.chat("demo", QUESTION, options=COLD)
    assert "knife for local models" in (whole.message.content or "")
    assert (whole.done_reason, (whole.eval_count or 0) > 0, (whole.eval_duration or 0) > 0) == ("stop", True, True)
    parts = list(client.chat("demo:latest", QUESTION, stream=True, options=COLD, keep_alive="5m"))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count) == (whole.prompt_eval_count, whole.eval_count)
    thought = client.chat("demo", QUESTION, think=True, options=COLD)
    assert thought.message.thinking
    assert thought.message.content
    typed = client.chat("demo", QUESTION, format=City.model_json_schema(), options=COLD)
    assert City.model_validate_json(typed.message.content or "").city in {"Paris", "Rome"}
    spelled = client.chat("demo", QUESTION, logprobs=True, top_logprobs=2, options=COLD)
    assert "".join(token.token for token in spelled.logprobs or ()) == spelled.message.content


def check_tools(client: ollama.Client) -> None:
    """Have a tool called, and its result read."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    called = client.chat("demo", messages, tools=[get_weather], options=COLD)
    [call] = called.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    streamed = list(client.chat("demo", messages, tools=[get_weather], options=COLD, stream=True))
    assert [each.function for part in streamed for each in part.message.tool_calls or ()] == [call.function]
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)}
    answered = client.chat("demo", [*messages, called.message, result], tools=[get_weather], options=COLD)
    assert answered.message.content
    assert not answered.message.tool_calls


def check_images(client: ollama.Client) -> None:
    """Ask about a drawing, as bytes and in base64."""
    for image in (square(), base64.b64encode(square()).decode()):
        asked = [{"role": "user", "content": "What color is it?", "images": [image]}]
        assert "blue" in (client.chat("demo-vision", asked, options=COLD).message.content or "")
        assert "blue" in client.generate("demo-vision", "What color is it?", images=[image], options=COLD).response


def check_generate(client: ollama.Client) -> None:
    """Ask by a prompt; load, look, and unload."""
    whole = client.generate("demo", "What is mlxk?", options=COLD, system="Be brief.")
    parts = list(client.generate("demo", "What is mlxk?", stream=True, options=COLD, system="Be brief."))
    assert "".join(part.response for part in parts) == whole.response
    raw = client.generate("demo", "mlxk is", raw=True, options={"num_predict": 3})
    assert raw.done_reason == "length"
    assert client.generate("demo", keep_alive=-1).done_reason == "load"
    [loaded] = [model for model in client.ps().models if model.model == "demo:latest"]
    assert (loaded.size_vram, loaded.context_length) == (loaded.size, 2048)
    assert loaded.expires_at is not None
    assert client.generate("demo", keep_alive=0).done_reason == "unload"
    assert "demo:latest" not in [model.model for model in client.ps().models]


def check_errors(client: ollama.Client) -> None:
    """Ask for what there is not."""
    for attempt, status, text in (
        (lambda: client.chat("no/such", QUESTION), 404, "model 'no/such' not found"),
        (lambda: client.embed("demo", "a"), 400, "'demo' is not an embedding model"),
        (lambda: client.pull("org/m"), 403, "this server does not let clients pull"),
        (lambda: client.create("new", from_="demo"), 400, "create is not supported"),
        (lambda: client.copy("demo", "new"), 400, "copy is not supported"),
        (lambda: client.generate("demo", "x", template="t", context=[1]), 400, "template: is not supported"),
        (lambda: client.chat("demo-vision", QUESTION, think=True), 400, '"demo-vision" does not support thinking'),
    ):
        try:
            attempt()
        except ollama.ResponseError as error:
            assert error.status_code == status, (error.status_code, error.error)
            assert error.error.startswith(text), error.error
        else:
            raise AssertionError(text)


async def check_asynchronous() -> None:
    """Ask many at once."""
    client = ollama.AsyncClient(host=HOST)
    answers = await asyncio.gather(*(client.chat("demo", QUESTION, options=COLD) for _ in range(8)))
    assert len({answer.message.content for answer in answers}) == 1
    parts = [part async for part in await client.chat("demo", QUESTION, options=COLD, stream=True)]
    assert json.loads(parts[-1].model_dump_json())["done"] is True


if __name__ == "__main__":
    sdk = ollama.Client(host=HOST)
    check_listings(sdk)
    check_chat(sdk)
    check_tools(sdk)
    check_images(sdk)
    check_generate(sdk)
    check_errors(sdk)
    asyncio.run(check_asynchronous())
