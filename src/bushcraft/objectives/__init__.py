"""What the model learns to predict: packed rows of documents → batches."""
