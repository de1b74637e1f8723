"""Products that no library has: with weights in blocks, each beside what it means in plain torch."""
