"""A run's state as a manifest over verified objects; no pickle, no layout."""
