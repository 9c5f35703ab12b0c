"""``codex --oss`` with the provider name of LM Studio."""

import codex_oss

codex_oss.ask("lmstudio", "reads-by-shell")
