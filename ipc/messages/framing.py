"""How messages travel: one ZeroMQ message is one frame, a 4-byte `HEADER` and then a msgpack body.

A client sends one `Request` a message, or a list of those that it has at one moment. A neuron sends a list
of `Reply` a message, so that all events of one step for one client travel together. Most of what a message
costs is to wake the threads that it passes.

One frame, because libzmq aborts the process of a client whose connection ends while it has read one frame of
a message and not yet the next (`Assertion failed: !_more`, fq.cpp, with `ZMQ_IMMEDIATE`).
"""

from __future__ import annotations

PROTOCOL_MAJOR = 2
PROTOCOL_MINOR = 5
HEADER = b"cx" + bytes((PROTOCOL_MAJOR, PROTOCOL_MINOR))

SEVERAL_SINCE = 4  # the minor version of neurons that take a list of requests,
MOST_TOGETHER = 16  # so many of them: a few milliseconds of work,
BYTES_TOGETHER = 64 << 10  # and of so many bytes
ARRAY_BYTES = 5  # of these, that say at most that it is a list
