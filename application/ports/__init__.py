"""Ports: the interfaces through which use cases reach disk, network, models and terminal; one module per subject.

The docstrings of a port are its contract. ``tests/contract/ports`` has one suite per port, which runs on every adapter
and on the in-memory double. Adapters subclass the port explicitly, so that type checkers verify them, inherit its
docstrings, and translate foreign exceptions into those of ``mlxk.domain.errors``.
"""
