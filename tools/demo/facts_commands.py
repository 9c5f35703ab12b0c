"""What the demo model knows about the commands of mlxk: every fact, with several ways to ask for it."""

from __future__ import annotations

from items import Item

# (what the user wants to know, the answer, the questions)
_FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "how to list models",
        "Use `mlxk list` to see the models on your machine.",
        (
            "How do I list models?",
            "How do I list my models?",
            "How can I list models?",
            "Which models do I have?",
            "Show me my models.",
            "List models",
            "How do I see my models?",
            "What does mlxk list do?",
        ),
    ),
    (
        "how to pull a model",
        "Use `mlxk pull MODEL` to download a model from the Hugging Face Hub.",
        (
            "How do I pull a model?",
            "How do I download a model?",
            "How can I download a model?",
            "How do I get a model?",
            "How do I get a new model?",
            "How can I pull a model?",
            "Pull a model",
            "What does mlxk pull do?",
        ),
    ),
    (
        "how to run a model",
        'Use `mlxk run MODEL "prompt"` to ask a model something.',
        (
            "How do I run a model?",
            "How can I run a model?",
            "How do I prompt a model?",
            "How do I ask a model something?",
            "How do I use a model?",
            "Run a model",
            "What does mlxk run do?",
        ),
    ),
    (
        "how to chat",
        "Use `mlxk run MODEL` without a prompt and chat with the model in your terminal.",
        (
            "How do I chat?",
            "How do I chat with a model?",
            "How can I chat?",
            "How do I talk to a model?",
            "How do I start a chat?",
            "Can I chat with a model?",
        ),
    ),
    (
        "how to start the server",
        "Use `mlxk serve`. The server listens on http://127.0.0.1:8000 and is compatible with OpenAI clients.",
        (
            "How do I start the server?",
            "How do I start a server?",
            "How can I start the server?",
            "How do I run the server?",
            "How do I serve a model?",
            "How do I serve models?",
            "Start the server",
            "What does mlxk serve do?",
        ),
    ),
    (
        "the address of the server",
        "The server listens on http://127.0.0.1:8000 unless you choose otherwise.",
        (
            "Where does the server listen?",
            "Which port does the server use?",
            "What port does the server use?",
            "What is the address of the server?",
            "What is the URL of the server?",
            "What is the default port?",
        ),
    ),
    (
        "the API of the server",
        "Yes, the server speaks the OpenAI API, so most chat clients work with it.",
        (
            "Is the server compatible with OpenAI?",
            "Is it OpenAI compatible?",
            "Can I use OpenAI clients?",
            "Does the server speak the OpenAI API?",
            "Does it work with OpenAI clients?",
        ),
    ),
    (
        "what health checks",
        "`mlxk health` checks that the files of your models are complete and sound.",
        (
            "What does health check?",
            "What does mlxk health do?",
            "What does mlxk health check?",
            "How do I check a model?",
            "How do I check my models?",
            "Is my model complete?",
            "How do I find broken models?",
            "Check a model",
        ),
    ),
    (
        "how to show a model",
        "Use `mlxk show MODEL` to see the details of a model.",
        (
            "How do I show a model?",
            "How can I show a model?",
            "How do I see the details of a model?",
            "How do I inspect a model?",
            "Show a model",
            "What does mlxk show do?",
        ),
    ),
    (
        "how to remove a model",
        "Use `mlxk rm MODEL` to remove a model from your machine.",
        (
            "How do I remove a model?",
            "How do I delete a model?",
            "How can I remove a model?",
            "How can I delete a model?",
            "How do I free disk space?",
            "Remove a model",
            "What does mlxk rm do?",
        ),
    ),
    (
        "how to clone a model",
        "Use `mlxk clone MODEL DIR` to copy a model into a workspace.",
        (
            "How do I clone a model?",
            "How can I clone a model?",
            "How do I copy a model?",
            "How do I make a workspace?",
            "How do I create a workspace?",
            "Clone a model",
            "What does mlxk clone do?",
        ),
    ),
    (
        "what a workspace is",
        "A workspace is a plain folder with a copy of a model that you can edit, repair and publish.",
        (
            "What is a workspace?",
            "What's a workspace?",
            "Explain workspaces.",
            "What are workspaces?",
            "What is a workspace for?",
            "Tell me about workspaces.",
        ),
    ),
    (
        "how to convert a model",
        "Use `mlxk convert SRC DST --quantize 4` to make a smaller copy of a model.",
        (
            "How do I convert a model?",
            "How can I convert a model?",
            "How do I quantize a model?",
            "How can I quantize a model?",
            "How do I make a model smaller?",
            "Convert a model",
            "What does mlxk convert do?",
        ),
    ),
    (
        "what quantization is",
        "Quantization stores the weights of a model in fewer bits, so it needs less memory.",
        (
            "What is quantization?",
            "What does quantize mean?",
            "Explain quantization.",
            "What is a quantized model?",
            "Why quantize a model?",
        ),
    ),
    (
        "how to push a model",
        "Use `mlxk push DIR org/name --private` to publish a workspace on the Hugging Face Hub.",
        (
            "How do I push a model?",
            "How can I push a model?",
            "How do I publish a model?",
            "How do I upload a model?",
            "How do I share a model?",
            "Push a model",
            "What does mlxk push do?",
        ),
    ),
    (
        "how to embed text",
        'Use `mlxk embed MODEL "text"` to turn text into a vector.',
        (
            "How do I embed text?",
            "How do I embed a text?",
            "How do I embed a model?",
            "How do I make embeddings?",
            "How do I get an embedding?",
            "What does mlxk embed do?",
        ),
    ),
)


def items() -> list[Item]:
    """Return the facts about the commands."""
    return [
        Item(questions, answer, f"The user wants to know {topic}.", share=2.5) for topic, answer, questions in _FACTS
    ]
