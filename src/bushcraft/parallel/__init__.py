"""Which rank holds which part of what: layouts are data, and the model knows nothing of them."""
