"""Looking after a store: status, scrub, drill, replication, clean-up."""
