"""All that crosses a process boundary: messages, shared-memory rings, ZeroMQ server and clients, keys."""
