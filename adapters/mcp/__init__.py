"""The Model Context Protocol: a client of tool servers."""
