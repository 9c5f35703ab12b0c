"""Names by which a machine reaches itself."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""In lower case; an address of IPv6 without its brackets."""
