"""The parts that a decoder is built of; each knows its share of the checkpoint and how to compute with it."""
