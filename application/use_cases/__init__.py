"""Use cases, a module a subject: frozen classes with their ports as fields and one ``__call__``."""
