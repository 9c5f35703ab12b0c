"""Use cases, one a module: a frozen class with its ports as fields and one ``__call__``."""
