"""How messages travel: one ZeroMQ message is one frame, a 4-byte `HEADER` and then a msgpack body.

A client sends one `Request` a message; a neuron sends a list of `Reply` a message, so that all events of one
engine step for one client travel together.

One frame, because libzmq aborts the process of a client whose connection ends while it has read one frame of
a message and not yet the next (`Assertion failed: !_more`, fq.cpp, with `ZMQ_IMMEDIATE`).
"""

from __future__ import annotations

PROTOCOL_MAJOR = 2
PROTOCOL_MINOR = 3
HEADER = b"cx" + bytes((PROTOCOL_MAJOR, PROTOCOL_MINOR))
