"""What one model has while it is loaded."""
