"""Fine-tuning: recipes, batches, training over ranks, exact resume, and testing."""
