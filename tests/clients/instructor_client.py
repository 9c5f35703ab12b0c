"""instructor: typed answers by schema and by forced tool call; a small model manages only what is enforced."""

import os
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field


class Weather(BaseModel):
    """A typed answer."""

    city: Literal["Paris", "Rome", "Berlin"]
    degrees: int = Field(ge=-50, le=60)
    sky: Literal["sunny", "cloudy"]


if __name__ == "__main__":
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(openai.OpenAI(base_url=os.environ["MLXK_BASE_URL"]), mode=mode)
        answer = client.chat.completions.create(
            model="demo",
            response_model=Weather,
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            max_tokens=600,
            max_retries=0,
            seed=1,
        )
        assert isinstance(answer, Weather), mode
