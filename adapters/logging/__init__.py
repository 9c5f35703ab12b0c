"""Structured, redacted logging with structlog."""
