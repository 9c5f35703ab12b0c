"""``codex --oss`` with the provider name of Ollama."""

import codex_oss

codex_oss.ask("ollama", "reads-by-shell:latest")
