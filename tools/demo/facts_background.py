"""What the demo model knows around mlxk: platforms, terms, privacy and output formats."""

from __future__ import annotations

from items import Item

# (what the user wants to know, the answer, the questions)
_FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "what MLX is",
        "MLX is Apple's array framework for machine learning. It is made for Apple silicon.",
        (
            "What is MLX?",
            "What's MLX?",
            "Tell me about MLX.",
            "Explain MLX.",
            "What does MLX mean?",
            "Who makes MLX?",
        ),
    ),
    (
        "how to get JSON",
        "Add `--json` to any command to get JSON.",
        (
            "How do I get JSON?",
            "How do I get JSON output?",
            "How can I get JSON?",
            "Is there JSON output?",
            "Can I use mlxk in scripts?",
            "What does --json do?",
            "Does mlxk print JSON?",
        ),
    ),
    (
        "the platforms",
        "mlxk works on Macs with Apple silicon and on Linux.",
        (
            "Which platforms?",
            "Which platforms does mlxk support?",
            "Where does mlxk run?",
            "Does mlxk run on Linux?",
            "Does it work on Linux?",
            "Does mlxk run on a Mac?",
            "What systems does mlxk support?",
            "Which platforms are supported?",
        ),
    ),
    (
        "whether mlxk runs on Windows",
        "No, mlxk works on Macs with Apple silicon and on Linux, not on Windows.",
        (
            "Does mlxk run on Windows?",
            "Does it work on Windows?",
            "Can I use mlxk on Windows?",
            "Is there a Windows version?",
        ),
    ),
    (
        "whether mlxk sends telemetry",
        "No, mlxk sends no telemetry. Your prompts stay on your machine.",
        (
            "Does it send telemetry?",
            "Does mlxk send telemetry?",
            "Is there telemetry?",
            "Does mlxk send my data anywhere?",
            "Is my data private?",
            "Do you send my data?",
            "Does mlxk spy on me?",
        ),
    ),
    (
        "the licence",
        "mlxk is free software under the Apache-2.0 licence.",
        (
            "What is the licence?",
            "What is the license?",
            "Licence?",
            "License?",
            "Which licence does mlxk have?",
            "Which license does mlxk have?",
            "Is mlxk open source?",
            "Is mlxk free?",
        ),
    ),
    (
        "which Python is needed",
        "mlxk needs Python 3.11 or newer.",
        (
            "Which Python do I need?",
            "Which Python version do I need?",
            "What Python version does mlxk need?",
            "Does mlxk need Python?",
            "Which Python does mlxk need?",
        ),
    ),
    (
        "where the models are stored",
        "Models live in the Hugging Face cache. Set `HF_HOME` to move it.",
        (
            "Where are the models stored?",
            "Where are my models?",
            "Where does mlxk store models?",
            "Where is the cache?",
            "What is the cache?",
            "How do I move the cache?",
        ),
    ),
    (
        "whether mlxk works offline",
        "Yes, once a model is on your machine it runs without a network.",
        (
            "Does mlxk work offline?",
            "Can I use mlxk offline?",
            "Does it work offline?",
            "Do I need the internet?",
            "Does it need a network?",
        ),
    ),
    (
        "what Hugging Face is",
        "Hugging Face runs the Hub, a site where people share models and data.",
        (
            "What is Hugging Face?",
            "What is the Hugging Face Hub?",
            "What is the Hub?",
            "Tell me about Hugging Face.",
            "Where do models come from?",
        ),
    ),
    (
        "what a language model is",
        "A language model is a program that predicts the next piece of a text.",
        (
            "What is a language model?",
            "What is an LLM?",
            "What's a language model?",
            "Explain language models.",
            "How do language models work?",
        ),
    ),
    (
        "what a token is",
        "A token is a short piece of text, often a word or a part of one.",
        ("What is a token?", "What's a token?", "Explain tokens.", "What are tokens?", "What does token mean?"),
    ),
    (
        "what a prompt is",
        "A prompt is the text that you give to a model.",
        ("What is a prompt?", "What's a prompt?", "Explain prompts.", "What are prompts?", "What does prompt mean?"),
    ),
    (
        "what an embedding is",
        "An embedding is a list of numbers that stands for the meaning of a text.",
        ("What is an embedding?", "What's an embedding?", "Explain embeddings.", "What are embeddings?"),
    ),
    (
        "what safetensors is",
        "safetensors is a file format that stores the weights of a model safely.",
        ("What is safetensors?", "What are safetensors?", "Explain safetensors.", "What is a safetensors file?"),
    ),
    (
        "what Apple silicon is",
        "Apple silicon is the family of chips that Apple makes for its computers, such as the M1.",
        ("What is Apple silicon?", "What's Apple silicon?", "Explain Apple silicon.", "Tell me about Apple silicon."),
    ),
    (
        "how to run the demo",
        'Use `mlxk run demo "What is mlxk?"`. The demo is built in and needs no download.',
        (
            "How do I run the demo?",
            "How do I try the demo?",
            "How can I try mlxk?",
            "Is there a demo?",
            "What is the demo?",
            "How do I get started?",
        ),
    ),
    (
        "how to stop the server",
        "Press Ctrl-C in its terminal. The server finishes its work and stops.",
        (
            "How do I stop the server?",
            "How can I stop the server?",
            "How do I quit the server?",
            "Stop the server",
            "How do I end the server?",
        ),
    ),
    (
        "how to get help",
        "Add `--help` to any command to see what it can do.",
        (
            "How do I get help?",
            "Where can I find help?",
            "How can I get help?",
            "What does --help do?",
            "Which commands are there?",
            "What commands does mlxk have?",
        ),
    ),
    (
        "how to see the version",
        "Use `mlxk --version` to see the version.",
        (
            "Which version do I have?",
            "How do I see the version?",
            "What version is this?",
            "Which version of mlxk is this?",
            "What does --version do?",
        ),
    ),
)


def items() -> list[Item]:
    """Return the facts about terms, platforms and formats."""
    return [
        Item(questions, answer, f"The user wants to know {topic}.", share=2.5) for topic, answer, questions in _FACTS
    ]
