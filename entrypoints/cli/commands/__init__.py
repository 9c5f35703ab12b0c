"""The commands, one module each; ``program`` has the table of them and imports a module when its command is used."""
