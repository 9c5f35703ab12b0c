"""litellm: completion, stream, errors translated."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

QUESTION = [{"role": "user", "content": "What is mlxk?"}]

if __name__ == "__main__":
    common = {"model": "openai/demo", "api_base": os.environ["MLXK_BASE_URL"], "messages": QUESTION, "temperature": 0}
    answer = litellm.completion(**common)
    assert "knife for local models" in answer.choices[0].message.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**common, stream=True))
    assert text == answer.choices[0].message.content
    try:
        litellm.completion(**{**common, "model": "openai/no/such"}, num_retries=0)
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("an unknown model was answered")
