"""The agents and other programs that ``mlxk launch`` starts or describes, and how each is configured for a server.

A new one is one entry of ``AGENTS``. In its texts the words ``ADDRESS``, ``KEY``, ``MODEL``, ``CONTEXT``, ``INPUT`` and
``OUTPUT`` are placeholders for the facts of a ``Connection``.
"""

import json
import re
import shlex

import attrs

SMALLEST_CONTEXT = 32768
"""Tokens of context that an agent's own prompts need, with some left for its task."""

_MOST_OUTPUT = 8192
"""Tokens of the context window reserved for output, at most."""

_PLACE = re.compile(r"\b(?:ADDRESS|KEY|MODEL|CONTEXT|INPUT|OUTPUT)\b")


@attrs.frozen(kw_only=True)
class Connection:
    """The server and model that a program is configured for. The defaults fit a server started with no flags."""

    address: str = "http://127.0.0.1:8000"
    """Base URL, without ``/v1``."""
    key: str = attrs.field(default="local", repr=False)
    model: str = "MODEL"
    """The model's name on the server."""
    context: int = SMALLEST_CONTEXT
    """Tokens of its context window."""

    def fill(self, text: str) -> str:
        """Return a text with its placeholders replaced; the values are escaped if the text has double quotes."""
        output = min(_MOST_OUTPUT, self.context // 4)
        facts = {"ADDRESS": self.address, "KEY": self.key, "MODEL": self.model, "CONTEXT": str(self.context)}
        facts |= {"INPUT": str(self.context - output), "OUTPUT": str(output)}
        if '"' in text:
            facts = {name: _escaped(fact) for name, fact in facts.items()}
        return _PLACE.sub(lambda place: facts[place[0]], text)


def _escaped(fact: str) -> str:
    """Return a value escaped for a double-quoted string of JSON, TOML and YAML alike.

    Characters above U+FFFF are not escaped: JSON would need surrogate pairs, which TOML forbids. All other characters
    that are not printable are escaped; TOML and YAML allow fewer of them than JSON.
    """
    escaped = json.dumps(fact, ensure_ascii=False)[1:-1]
    return "".join(each if each.isprintable() or each > "\uffff" else f"\\u{ord(each):04x}" for each in escaped)


@attrs.frozen
class AgentFile:
    """A configuration file that the user writes; mlxk never does."""

    path: str
    text: str


@attrs.frozen(kw_only=True)
class Agent:
    """A program, and how it is configured."""

    name: str
    title: str
    install: str
    """The install command of its makers, or the URL of a page."""
    program: str | None = None
    """The command's name; None for a graphical program."""
    variables: tuple[tuple[str, str], ...] = ()
    """Its environment variables; an empty value overrides one of the user's environment."""
    words: tuple[str, ...] = ()
    """Arguments before the user's own."""
    before: tuple[str, ...] = ()
    """A command that configures it once."""
    files: tuple[AgentFile, ...] = ()
    remark: str = ""
    started: bool = False
    """Whether ``mlxk launch`` can start it; such an agent needs no configuration file."""

    def environment(self, connection: Connection) -> dict[str, str]:
        """Return its environment variables."""
        return {name: connection.fill(value) for name, value in self.variables}

    def arguments(self, connection: Connection) -> list[str]:
        """Return its arguments before the user's own."""
        return [connection.fill(word) for word in self.words]

    def commands(self, connection: Connection) -> list[str]:
        """Return the lines of shell that start it by hand."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.environment(connection).items()]
        if self.before:
            lines.append(shlex.join(map(connection.fill, self.before)))
        if self.program is not None:
            lines.append(" ".join((self.program, *map(_quoted, self.arguments(connection)))))
        return lines

    def written(self, connection: Connection) -> list[AgentFile]:
        """Return the configuration files that the user writes."""
        return [AgentFile(file.path, connection.fill(file.text)) for file in self.files]


def _quoted(word: str) -> str:
    """Return a word quoted for a shell, except for a leading ``~/``, which the shell expands."""
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
"""All programs by name; those that ``mlxk launch`` starts come first."""
