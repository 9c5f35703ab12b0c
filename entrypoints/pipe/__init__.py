"""Pipes: a prompt from standard input."""
