"""What is true: frozen values and pure rules. Imports nothing of ours but itself, and does no I/O."""
