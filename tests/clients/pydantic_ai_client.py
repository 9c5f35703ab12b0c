"""pydantic-ai: text, stream, and typed output, which it asks for with a forced tool call."""

import asyncio
import os
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
    """A typed answer."""

    name: Literal["Paris", "Rome"]
    population: int


async def main() -> None:
    """Ask in every way."""
    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=os.environ["MLXK_BASE_URL"], api_key="any"))
    plain = Agent(model, model_settings={"temperature": 0, "max_tokens": 200})
    assert "knife for local models" in (await plain.run("What is mlxk?")).output
    async with plain.run_stream("What is mlxk?") as streamed:
        assert "knife for local models" in await streamed.get_output()
    typed = Agent(model, output_type=City, model_settings={"temperature": 0, "max_tokens": 200}, retries=0)
    assert isinstance((await typed.run("Name a city.")).output, City)


if __name__ == "__main__":
    asyncio.run(main())
