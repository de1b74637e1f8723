"""One rank of a model: scheduler, KV pages, models, layers, loading, sampling; the simulated engine."""
