"""The models of a neuron: each from its first request to its end, and all of them together."""
