"""The tensors of each family of models, and how ranks share them."""
