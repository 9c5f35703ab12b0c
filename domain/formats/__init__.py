"""Output formats of model families: reasoning, tool calls and channels, parsed incrementally."""
