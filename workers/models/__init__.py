"""The models: what a checkpoint's layers compute, in the order of the papers' figures."""
