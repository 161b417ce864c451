"""Plain PyTorch models: layers, attention over segments, the transformer. No parallel branch."""
