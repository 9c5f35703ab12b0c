"""The operating system: memory and clock."""
