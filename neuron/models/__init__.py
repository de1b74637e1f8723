"""The models of a neuron: found, managed, queued for, counted."""
