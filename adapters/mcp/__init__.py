"""The Model Context Protocol: servers of tools."""
