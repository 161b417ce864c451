"""Immutable objects named by the BLAKE3 hash of their content, in depots that anybody can provide."""
