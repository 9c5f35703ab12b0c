"""One verb a module: a frozen class that holds its ports and has one ``__call__``."""
