"""What msgspec has to know of our types before threads use them."""

from __future__ import annotations

from contextlib import suppress

import msgspec


def learn_structs() -> None:
    """Have msgspec read every `Struct` that is there by now: some hundredths of a second.

    It reads the annotations of a class when it first decodes one. That runs Python code, so other threads may
    run meanwhile, and they find the class half read: two threads that decode a class for the first time end
    the process with SIGSEGV (msgspec 0.22). So a process calls this once it has imported what it needs, and
    before it starts threads.
    """
    classes = [msgspec.Struct]
    while classes:
        for each in classes.pop().__subclasses__():
            classes.append(each)
            with suppress(TypeError):  # one that is only ever encoded
                msgspec.msgpack.Decoder(each)
