"""Ports: the interfaces through which use cases reach disk, network, models and terminal, a module a subject.

A port's docstrings are its contract; ``tests/contract/ports`` has one suite a port, run on every adapter and on the
in-memory double. Adapters subclass the port explicitly, so that type checkers see the relation, inherit its docstrings,
and translate foreign exceptions into those of ``mlxk.domain.errors``.
"""
