"""Which tokens go through the engine in the next step. Plain data, no torch."""
