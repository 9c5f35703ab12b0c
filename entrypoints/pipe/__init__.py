"""Pipes: standard input joined with the words of the command."""
