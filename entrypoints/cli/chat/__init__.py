"""The chat: a loop on the terminal, its slash commands, and its transcript files."""
