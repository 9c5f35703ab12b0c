"""schemathesis: generated requests, right and wrong ones, over the OpenAPI document that the server hands out.

Nothing may make the server fail, and every answer and every event of a stream has to be as the document says. Two
checks are left out: some rules join several fields, which a schema does not say; and keys are optional here.

Run by schemathesis as its hooks too: with names of models that do not exist, hardly a request would get far.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import schemathesis

EXAMPLES = "30"
"""Requests generated for each address, beside those that try every limit of the document once."""

LEFT_OUT = "positive_data_acceptance,ignored_auth"


SAME = "^/(chat/completions|completions|embeddings|models|unload|generate|responses|tokenize|detokenize|apply-template)"
"""Addresses that are the same resources as those below ``/v1``."""

LIMITS = {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}
"""The field that limits an answer, where it is another one than in chat."""


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Name a model that exists wherever the name is a possible one, and keep answers short."""
    if not (isinstance(body, dict) and isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 4096):
        return body
    body["model"] = "demo"
    path = context.operation.path if context.operation is not None else ""
    if path.startswith("/api/"):
        options = body.get("options")
        if options is None or isinstance(options, dict):
            body["options"] = {"num_predict": 2, **(options or {})}
    elif path in LIMITS:
        body.setdefault(LIMITS[path], 2)
    elif not {"max_tokens", "max_completion_tokens"} & set(body):
        body["max_tokens"] = 2
    return body


def main() -> int:
    """Run schemathesis; return its exit status."""
    address = os.environ["MLXK_BASE_URL"].removesuffix("/v1")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--url", address]
    flags = [
        "--checks",
        "all",
        "--exclude-path-regex",
        SAME,
        "--exclude-checks",
        LEFT_OUT,
        "--max-examples",
        EXAMPLES,
        "--seed",
        "1",
        "--no-color",
    ]
    here = Path(__file__)
    paths = {"SCHEMATHESIS_HOOKS": here.stem, "PYTHONPATH": str(here.parent)}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([*command, *flags], cwd=folder, env={**os.environ, **paths}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
