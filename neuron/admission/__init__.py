"""Who waits for a model, in which order, and for how long."""
