"""The demo model that travels with cortex: its corpus, its training, its export."""
