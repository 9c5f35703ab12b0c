"""OpenAI's Agents SDK over the Responses API: tools with a typed answer, streamed and whole, and a chain of turns."""

import asyncio
import os

import agents
import openai
from pydantic import BaseModel

ADDRESS = os.environ["MLXK_BASE_URL"]
NOTE = "@@NOTE@@"
"""What the scripted model takes for the result of its call."""


GREEDY = agents.ModelSettings(temperature=0)


class Sum(BaseModel):
    """A typed answer."""

    answer: int


called: list[tuple[int, int]] = []


@agents.function_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    called.append((a, b))
    return f"{a + b} {NOTE}"


async def check_typed_answers(sdk: openai.AsyncOpenAI) -> None:
    """Let the model call the tool and answer by the schema, whole and streamed."""
    model = agents.OpenAIResponsesModel(model="adds", openai_client=sdk)
    agent = agents.Agent(
        name="Adder", instructions="Add.", model=model, tools=[add], output_type=Sum, model_settings=GREEDY
    )
    result = await agents.Runner.run(agent, "What is 1 + 2?")
    assert result.final_output == Sum(answer=3), result.final_output
    streamed = agents.Runner.run_streamed(agent, "What is 1 + 2?")
    kinds = [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == Sum(answer=3), streamed.final_output
    assert "raw_response_event" in kinds
    assert called == [(1, 2), (1, 2)]
    assert result.context_wrapper.usage.total_tokens > 0


async def check_chain(sdk: openai.AsyncOpenAI) -> None:
    """Go on from a response that the server keeps."""
    model = agents.OpenAIResponsesModel(model="demo", openai_client=sdk)
    agent = agents.Agent(name="Guide", model=model, model_settings=GREEDY)
    first = await agents.Runner.run(agent, "What is mlxk?")
    assert "knife for local models" in first.final_output
    again = agents.Runner.run_streamed(agent, "Who are you?", previous_response_id=first.last_response_id)
    async for _ in again.stream_events():
        pass
    assert again.final_output
    longer = again.raw_responses[-1].usage.input_tokens
    assert longer > first.raw_responses[-1].usage.input_tokens, longer


async def main() -> None:
    """Ask in every way."""
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=ADDRESS, api_key="any", max_retries=0) as sdk:
        await check_typed_answers(sdk)
        await check_chain(sdk)


if __name__ == "__main__":
    asyncio.run(main())
