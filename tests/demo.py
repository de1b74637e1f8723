"""The model that comes with cortex, as a folder."""

from pathlib import Path

DEMO = Path(__file__).parents[1] / "neuron" / "demo"
