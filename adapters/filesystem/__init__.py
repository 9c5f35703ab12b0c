"""Model directories and workspaces on the local file system."""
