"""Adapters of the ports, one package for each technology. They do not import each other; the container imports them."""
