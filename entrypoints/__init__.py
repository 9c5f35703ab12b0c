"""The entrypoints: command line, standard input and HTTP server, with the settings and the container they share."""
