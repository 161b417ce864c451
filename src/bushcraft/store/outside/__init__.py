"""A store for others to read: folders, a mount, fsspec."""
