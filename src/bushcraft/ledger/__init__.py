"""The run's append-only record: what happened, at which position, and where the time went."""
