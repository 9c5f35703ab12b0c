"""What the use cases need from outside, one small Protocol a file.

A port's docstrings are its contract; ``tests/contract/ports`` holds one suite a port, run on every adapter of it.
Adapters subclass the port explicitly, so that type checking sees the relation, and translate every foreign error into
the tree of ``mlxk.domain.errors``.
"""
