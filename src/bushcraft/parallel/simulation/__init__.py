"""A rank of many on tensors without data, and what is counted of it."""
