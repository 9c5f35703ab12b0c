"""The disk tier of the prefix cache: snapshots of prompts as files, for later processes."""
