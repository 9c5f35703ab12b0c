"""llm with its plugin for Ollama: models found by themselves, streams, schemas, tools and images."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ollama_client import HOST, square

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = 'def get_weather(city: str) -> str:\n    "Get the weather of a city"\n    return f"sunny in {city}"\n'


def llm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run llm and return what it did."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OLLAMA_HOST": HOST},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done


def ask(model: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Ask a model that takes the likeliest tokens."""
    return llm("-m", model, "-o", "temperature", "0", *arguments)


if __name__ == "__main__":
    listed = llm("models").stdout
    assert "Ollama: demo:latest (aliases: demo)" in listed, listed
    assert "demo-speech" not in listed, listed
    assert "knife for local models" in ask("demo", "What is mlxk?").stdout
    schema = ask("demo:latest", "--no-stream", "--schema", json.dumps(SCHEMA), "Name a city.").stdout
    assert json.loads(schema)["city"] in {"Paris", "Rome"}, schema
    called = ask("demo", "--functions", TOOL, "--td", "What is the weather in Paris?")
    assert "get_weather" in called.stderr, called.stderr
    assert "sunny in Paris" in called.stderr, called.stderr
    assert called.stdout.strip()
    drawing = Path(os.environ["LLM_USER_PATH"], "square.png")
    drawing.write_bytes(square())
    assert "blue" in ask("demo-vision", "-a", str(drawing), "What color is it?").stdout
