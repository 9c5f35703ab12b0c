"""gptme: a tool round trip over chat completions, with several system messages at the front."""

from coding_agents import QUESTION, address, ask_once, program

ask_once(
    [program("gptme"), "--non-interactive", "--model", "local/reads-by-gptme", "--tool-format", "tool", QUESTION],
    {
        "OPENAI_BASE_URL": f"{address()}/v1",
        "OPENAI_API_KEY": "local",
        # Otherwise the question brings the note along, and no tool is needed.
        "GPTME_DISABLE_PATH_INCLUDE": "1",
        "GPTME_NO_LOCAL_DISCOVERY": "1",
        "GPTME_TIKTOKEN_TIMEOUT": "0",
    },
)
