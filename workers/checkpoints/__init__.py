"""What a model is, read from its files once, without torch."""
