"""One request to an application on doubles: what was answered, and what reached the engine."""

import functools
import json
from typing import Any

from falcon.testing import TestClient
from serving import contract
from serving.parts import CHAT_MODEL, Parts

from mlxk.domain.generation.request import GenerationRequest

MESSAGES = [{"role": "user", "content": "one two three"}]


@functools.cache
def parts() -> Parts:
    """Return the one application that all requests of this module go to; it takes no harm."""
    return Parts()


def ask(path: str, **fields: Any) -> tuple[int, Any, GenerationRequest | None, dict[str, str]]:
    """Send a request; return status, answer, what reached the engine, and the headers."""
    generator = parts().generator
    generator.requests.clear()
    client = TestClient(parts().application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    required = {"messages": MESSAGES} if "chat" in path else {} if "responses" in path else {"prompt": "one two three"}
    response = client.simulate_post(path, body=json.dumps({"model": CHAT_MODEL, **required, **fields}))
    headers = {name.lower(): value for name, value in response.headers.items()}
    reached = generator.requests[0] if generator.requests else None
    contract.check("POST", path, response.status_code, headers["content-type"], response.json)
    return response.status_code, response.json, reached, headers


def chat(**fields: Any) -> tuple[Any, GenerationRequest]:
    """Send a chat request that is to be answered; return the answer and what reached the engine."""
    status, answer, reached, _ = ask("/v1/chat/completions", **fields)
    assert status == 200, answer
    assert reached is not None
    return answer, reached


def complete(**fields: Any) -> tuple[Any, GenerationRequest]:
    """Send a completion request that is to be answered; return the answer and what reached the engine."""
    status, answer, reached, _ = ask("/v1/completions", **fields)
    assert status == 200, answer
    assert reached is not None
    return answer, reached
