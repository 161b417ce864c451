"""Depots in buckets: what an endpoint can do, and how its failures are borne."""
