"""From a recipe to a trained model: sessions, steps, receipts, evaluation."""
