"""The tensors of each kind of cache."""
