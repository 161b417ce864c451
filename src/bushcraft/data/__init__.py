"""Documents → packs → an order of sequences that depends on seed, ledger and position alone."""
