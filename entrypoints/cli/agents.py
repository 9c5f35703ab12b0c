"""The agents and other programs that ``mlxk launch`` starts or describes: how each is told about a server.

A new one is one entry of ``AGENTS``. In its texts, ``ADDRESS``, ``KEY``, ``MODEL``, ``CONTEXT``, ``INPUT`` and
``OUTPUT`` are replaced by facts of a ``Connection``, as words of their own.
"""

import json
import re
import shlex

import attrs

SMALLEST_CONTEXT = 32768
"""Tokens of context that the prompts of agents need, with some to work."""

_MOST_OUTPUT = 8192

_PLACE = re.compile(r"\b(?:ADDRESS|KEY|MODEL|CONTEXT|INPUT|OUTPUT)\b")


@attrs.frozen(kw_only=True)
class Connection:
    """What a program is told: a server and a model of it. The defaults are those of a server started by hand."""

    address: str = "http://127.0.0.1:8000"
    """Without ``/v1``."""
    key: str = attrs.field(default="local", repr=False)
    model: str = "MODEL"
    """The name by which the server knows it."""
    context: int = SMALLEST_CONTEXT
    """Tokens of its context window."""

    def fill(self, text: str) -> str:
        """Return a text of the table with the facts in their places; inside of quotes they are escaped."""
        output = min(_MOST_OUTPUT, self.context // 4)
        facts = {"ADDRESS": self.address, "KEY": self.key, "MODEL": self.model, "CONTEXT": str(self.context)}
        facts |= {"INPUT": str(self.context - output), "OUTPUT": str(output)}
        if '"' in text:
            facts = {name: _escaped(fact) for name, fact in facts.items()}
        return _PLACE.sub(lambda place: facts[place[0]], text)


def _escaped(fact: str) -> str:
    """Return a fact as it stands between double quotes in JSON, TOML and YAML alike.

    TOML has no pairs of surrogates: what JSON writes as one stays as it is. The rest of what cannot be printed is
    escaped, since TOML and YAML allow less of it than JSON.
    """
    written = json.dumps(fact, ensure_ascii=False)[1:-1]
    return "".join(each if each.isprintable() or each > "\uffff" else f"\\u{ord(each):04x}" for each in written)


@attrs.frozen
class AgentFile:
    """A file of settings that the user writes; mlxk never does."""

    path: str
    text: str


@attrs.frozen(kw_only=True)
class Agent:
    """A program, and what it has to be told."""

    name: str
    title: str
    install: str
    """A command of its makers, or the address of a page."""
    program: str | None = None
    """What is typed in a shell; None for a program with windows."""
    variables: tuple[tuple[str, str], ...] = ()
    """Of its environment; an empty value hides what the user's environment has."""
    words: tuple[str, ...] = ()
    """After the program's name, before the user's own."""
    before: tuple[str, ...] = ()
    """A command that configures it once."""
    files: tuple[AgentFile, ...] = ()
    remark: str = ""
    started: bool = False
    """Whether ``mlxk launch`` starts it, which needs no file."""

    def environment(self, connection: Connection) -> dict[str, str]:
        """Return the variables that it is started with."""
        return {name: connection.fill(value) for name, value in self.variables}

    def arguments(self, connection: Connection) -> list[str]:
        """Return the arguments that it is started with, before the user's own."""
        return [connection.fill(word) for word in self.words]

    def commands(self, connection: Connection) -> list[str]:
        """Return the lines for a shell that start it by hand."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.environment(connection).items()]
        if self.before:
            lines.append(shlex.join(map(connection.fill, self.before)))
        if self.program is not None:
            lines.append(" ".join((self.program, *map(_quoted, self.arguments(connection)))))
        return lines

    def written(self, connection: Connection) -> list[AgentFile]:
        """Return the files of settings that the user writes."""
        return [AgentFile(file.path, connection.fill(file.text)) for file in self.files]


def _quoted(word: str) -> str:
    """Return a word as a shell takes it, which replaces the ``~`` of a path."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


_OPENAI = (("OPENAI_BASE_URL", "ADDRESS/v1"), ("OPENAI_API_KEY", "KEY"))

_CODEX = Agent(
    name="codex",
    title="Codex",
    program="codex",
    install="npm install -g @openai/codex",
    variables=(("MLXK_API_KEY", "KEY"),),
    words=(
        *("-c", 'model="MODEL"'),
        *("-c", 'model_provider="mlxk"'),
        "-c",
        'model_providers.mlxk={name="mlxk",base_url="ADDRESS/v1",wire_api="responses",env_key="MLXK_API_KEY"}',
        *("-c", "model_context_window=CONTEXT"),
        *("-c", "check_for_update_on_startup=false"),
    ),
    started=True,
)

_CLAUDE = Agent(
    name="claude",
    title="Claude Code",
    program="claude",
    install="npm install -g @anthropic-ai/claude-code",
    variables=(
        ("ANTHROPIC_BASE_URL", "ADDRESS"),
        ("ANTHROPIC_AUTH_TOKEN", "KEY"),
        ("ANTHROPIC_API_KEY", ""),
        ("CLAUDE_CODE_USE_BEDROCK", ""),
        ("CLAUDE_CODE_USE_VERTEX", ""),
        ("ANTHROPIC_MODEL", "MODEL"),
        ("ANTHROPIC_SMALL_FAST_MODEL", "MODEL"),
        ("ANTHROPIC_DEFAULT_HAIKU_MODEL", "MODEL"),
        ("ANTHROPIC_DEFAULT_SONNET_MODEL", "MODEL"),
        ("ANTHROPIC_DEFAULT_OPUS_MODEL", "MODEL"),
        ("CLAUDE_CODE_SUBAGENT_MODEL", "MODEL"),
        ("CLAUDE_CODE_AUTO_COMPACT_WINDOW", "CONTEXT"),
        ("CLAUDE_CODE_ATTRIBUTION_HEADER", "0"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ),
    started=True,
)

_OPENCODE_PROVIDER = (
    '{"npm": "@ai-sdk/openai-compatible", "name": "mlxk", '
    '"options": {"baseURL": "ADDRESS/v1", "apiKey": "{env:MLXK_API_KEY}"}, '
    '"models": {"MODEL": {"limit": {"context": CONTEXT, "output": OUTPUT}}}}'
)

_OPENCODE = Agent(
    name="opencode",
    title="opencode",
    program="opencode",
    install="npm install -g opencode-ai",
    variables=(
        ("MLXK_API_KEY", "KEY"),
        (
            "OPENCODE_CONFIG_CONTENT",
            '{"model": "mlxk/MODEL", "small_model": "mlxk/MODEL", "autoupdate": false, '
            f'"provider": {{"mlxk": {_OPENCODE_PROVIDER}}}}}',
        ),
        ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
    ),
    started=True,
)

_CONTINUE = """\
name: local
version: 1.0.0
schema: v1
models:
  - name: mlxk
    provider: openai
    model: "MODEL"
    apiBase: ADDRESS/v1
    apiKey: KEY
    capabilities: [tool_use]
"""

_PI = """\
{
  "providers": {
    "mlxk": {
      "baseUrl": "ADDRESS/v1",
      "api": "openai-completions",
      "apiKey": "KEY",
      "models": [{"id": "MODEL", "contextWindow": CONTEXT}]
    }
  }
}
"""

_AIDER = """\
{"openai/MODEL": {"max_input_tokens": CONTEXT, "max_tokens": OUTPUT, "litellm_provider": "openai", "mode": "chat"}}
"""

_CRUSH = """\
{
  "$schema": "https://charm.land/crush.json",
  "providers": {
    "mlxk": {
      "name": "mlxk",
      "type": "openai-compat",
      "base_url": "ADDRESS/v1",
      "api_key": "KEY",
      "models": [{"id": "MODEL", "name": "MODEL", "context_window": CONTEXT, "default_max_tokens": OUTPUT}]
    }
  }
}
"""

_LLM = """\
- model_id: local
  model_name: "MODEL"
  api_base: ADDRESS/v1
"""

_ZED = """\
{
  "language_models": {
    "openai_compatible": {
      "mlxk": {
        "api_url": "ADDRESS/v1",
        "available_models": [{
          "name": "MODEL",
          "display_name": "MODEL",
          "max_tokens": CONTEXT
        }]
      }
    }
  }
}
"""

_VSCODE = """\
[{
  "name": "mlxk",
  "vendor": "customendpoint",
  "apiKey": "KEY",
  "apiType": "chat-completions",
  "models": [{
    "id": "MODEL",
    "name": "MODEL",
    "url": "ADDRESS/v1/chat/completions",
    "toolCalling": true,
    "vision": false,
    "maxInputTokens": INPUT,
    "maxOutputTokens": OUTPUT
  }]
}]
"""

_LIBRECHAT = """\
endpoints:
  custom:
    - name: mlxk
      apiKey: choose-one
      baseURL: http://host.docker.internal:8000/v1
      models:
        default: ["MODEL"]
        fetch: true
"""

_OTHERS = (
    Agent(
        name="aider",
        title="aider",
        program="aider",
        install="python -m pip install aider-install && aider-install",
        variables=(("OPENAI_API_BASE", "ADDRESS/v1"), ("OPENAI_API_KEY", "KEY")),
        words=("--model", "openai/MODEL", "--model-metadata-file", "metadata.json"),
        files=(AgentFile("metadata.json", _AIDER),),
    ),
    Agent(
        name="cline",
        title="Cline",
        program="cline",
        install="npm install -g cline",
        before=(
            *("cline", "auth", "--provider", "openai-compatible", "--baseurl", "ADDRESS/v1"),
            *("--apikey", "KEY", "--modelid", "MODEL"),
        ),
        remark="In the editors' extension: API provider 'OpenAI Compatible', with the same address, key and model.",
    ),
    Agent(
        name="continue",
        title="Continue",
        program="cn",
        install="npm install -g @continuedev/cli",
        words=("--config", "~/.continue/config.yaml"),
        files=(AgentFile("~/.continue/config.yaml", _CONTINUE),),
        remark="The extensions of VS Code and JetBrains read the same file.",
    ),
    Agent(
        name="crush",
        title="Crush",
        program="crush",
        install="npm install -g @charmland/crush",
        files=(AgentFile("crush.json", _CRUSH),),
        remark="The file is that of the project, or ~/.config/crush/crush.json.",
    ),
    Agent(
        name="goose",
        title="goose",
        program="goose",
        install="brew install block-goose-cli",
        variables=(
            ("GOOSE_PROVIDER", "openai"),
            ("OPENAI_HOST", "ADDRESS"),
            ("OPENAI_API_KEY", "KEY"),
            ("GOOSE_MODEL", "MODEL"),
            ("GOOSE_CONTEXT_LIMIT", "CONTEXT"),
        ),
        words=("session",),
    ),
    Agent(
        name="gptme",
        title="gptme",
        program="gptme",
        install="pipx install gptme",
        variables=_OPENAI,
        words=("--model", "local/MODEL", "--tool-format", "tool"),
    ),
    Agent(
        name="pi",
        title="pi",
        program="pi",
        install="npm install -g @earendil-works/pi-coding-agent",
        words=("--model", "mlxk/MODEL"),
        files=(AgentFile("~/.pi/agent/models.json", _PI),),
    ),
    Agent(
        name="qwen-code",
        title="qwen-code",
        program="qwen",
        install="npm install -g @qwen-code/qwen-code",
        variables=_OPENAI,
        words=("--auth-type", "openai", "--model", "MODEL"),
    ),
    Agent(
        name="llm",
        title="llm",
        program="llm",
        install="pipx install llm",
        words=("-m", "local"),
        files=(AgentFile("extra-openai-models.yaml", _LLM),),
        remark="The file is in the folder that 'llm logs path' names.",
    ),
    Agent(
        name="zed",
        title="Zed",
        install="https://zed.dev/download",
        files=(AgentFile("settings.json", _ZED),),
        remark="The key is entered in the agent's settings, or is the variable MLXK_API_KEY.",
    ),
    Agent(
        name="vscode",
        title="VS Code",
        install="https://code.visualstudio.com/download",
        files=(AgentFile("chatLanguageModels.json", _VSCODE),),
        remark="The file opens by 'Add Models' in the model picker of the chat, then 'Custom Endpoint'.",
    ),
    Agent(
        name="jetbrains",
        title="JetBrains AI Assistant",
        install="https://www.jetbrains.com/ai/",
        remark="Settings, Tools, AI Assistant, Providers & API keys: 'OpenAI-compatible', ADDRESS/v1, the key KEY.",
    ),
    Agent(
        name="librechat",
        title="LibreChat",
        install="https://www.librechat.ai/docs/local",
        files=(AgentFile("librechat.yaml", _LIBRECHAT),),
        remark="On Linux, a container needs: MLXK2_API_KEY=choose-one mlxk serve --host 0.0.0.0",
    ),
    Agent(
        name="open-webui",
        title="Open WebUI",
        install="https://docs.openwebui.com/",
        before=(
            *("docker", "run", "-d", "-p", "3000:8080", "--add-host=host.docker.internal:host-gateway"),
            *("-e", "OPENAI_API_BASE_URL=http://host.docker.internal:8000/v1", "-e", "OPENAI_API_KEY=choose-one"),
            *("-v", "open-webui:/app/backend/data", "--name", "open-webui", "ghcr.io/open-webui/open-webui:main"),
        ),
        remark="On Linux, a container needs: MLXK2_API_KEY=choose-one mlxk serve --host 0.0.0.0",
    ),
)

AGENTS = {each.name: each for each in (_CODEX, _CLAUDE, _OPENCODE, *_OTHERS)}
"""By name; those that are started come first."""
