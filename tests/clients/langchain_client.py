"""langchain-openai: invoke, stream with usage counted once, tools, structured output."""

import os
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class City(BaseModel):
    """A typed answer."""

    name: Literal["Paris", "Rome"]


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


if __name__ == "__main__":
    model = ChatOpenAI(model="demo", base_url=os.environ["MLXK_BASE_URL"], temperature=0, max_tokens=400)
    answer = model.invoke("What is mlxk?")
    assert "knife for local models" in answer.content
    total = None
    for chunk in model.stream("What is mlxk?", stream_usage=True):
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.content == answer.content
    assert total.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
    called = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
    assert called.tool_calls[0]["name"] == "get_weather"
    forced = model.bind_tools([get_weather], tool_choice="get_weather").invoke("What is the weather in Rome?")
    assert "city" in forced.tool_calls[0]["args"]
    typed = model.with_structured_output(City, method="json_schema").invoke("Name a city.")
    assert isinstance(typed, City)
