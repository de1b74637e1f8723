"""The vocabulary between a client (the gateway, a test, anyone) and a neuron; see `docs/protocol.md`."""
