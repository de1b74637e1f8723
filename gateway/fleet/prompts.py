"""What can be told of a prompt without a tokenizer: names for its beginnings, and about how long it is.

A name is a hash of the model and of the turns up to a place, so all gateway processes give the same prompt
the same names. A neuron that is sent some of them as `Mark`s says which it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from ipc.messages.conversation import ImagePart, Message
from ipc.messages.requests import Generate, Mark

DIGEST_BYTES = 12
IMAGE_BYTES = 4000  # of text, that an image is about as long as
LAST_TURNS = 24  # after which a prompt may have been asked for before; further back only its head

_encode = msgspec.msgpack.Encoder().encode


class Place(msgspec.Struct, frozen=True):
    """A place in a prompt: what it is called up to there, and how many bytes of text that is."""

    digest: bytes
    size: int


class Prompt(msgspec.Struct, frozen=True):
    """A prompt, as far as the choice of a neuron goes.

    Attributes:
        size: bytes of its text; 0: nothing is known of it.
        places: where another prompt may have ended, the longest part first: the first one is all of it.
        head: the instructions and tools that it begins with; None where it has none, or nothing else.
        session: what the conversation is called; empty: it has no name.
    """

    size: int = 0
    places: Sequence[Place] = ()
    head: Place | None = None
    session: bytes = b""

    @property
    def key(self) -> bytes:
        """What is the same for prompts that belong together."""
        return self.session or (self.head.digest if self.head is not None else b"")

    def marks(self) -> list[Mark]:
        """The places that a neuron is to watch for us."""
        marks = [Mark(digest=place.digest) for place in self.places[:1]]
        if self.head is not None:
            marks.append(Mark(digest=self.head.digest, share=self.head.size / self.size))
        if self.session and self.places:
            marks.append(Mark(digest=self.session))
        return marks


NOTHING = Prompt()


def session_name(caller: str, session: str) -> str:
    """What neurons are told of a conversation that a caller calls so; the same in all processes."""
    return blake2b(f"{caller}\0{session}".encode(), digest_size=16).hexdigest() if session else ""


def read(request: Generate) -> Prompt:
    """The prompt of a request. It takes about a microsecond a turn, and one for each thousand bytes."""
    session = b""
    if request.session:
        session = blake2b(f"{request.model}\0{request.session}".encode(), digest_size=DIGEST_BYTES).digest()
    if request.messages is None:
        return Prompt(_size_of(request.prompt), session=session)
    made_with = (
        request.model,
        request.tools,
        request.template_args,
        request.thinking,
        request.cache_salt,
    )
    data = _encode(made_with)
    so_far = blake2b(data, digest_size=DIGEST_BYTES)
    size = len(data)
    head = Place(so_far.digest(), size) if request.tools else None
    last, instructions = len(request.messages) - 1, True
    places: list[Place] = []
    for number, message in enumerate(request.messages):
        data = _encode(message)
        so_far.update(data)
        size += len(data) if isinstance(message.content, str) else _length(message, len(data))
        instructions = instructions and message.role in ("system", "developer")
        if instructions:
            head = Place(so_far.digest(), size)
        if last - number < LAST_TURNS:
            places.append(Place(so_far.digest(), size))
    places.reverse()
    if head is not None and head.digest == places[0].digest:
        head = None
    elif head is not None and head.digest != places[-1].digest:
        places.append(head)
    return Prompt(size, places, head, session)


def _size_of(prompt: str | list | None) -> int:
    """About how long the text of prompts is that are taken as they are."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(4 if isinstance(each, int) else _size_of(each) for each in prompt or ())


def _length(message: Message, size: int) -> int:
    """Of a turn that is `size` bytes long, images included."""
    images = [part for part in message.content if isinstance(part, ImagePart)]
    return size - sum(len(image.data) - IMAGE_BYTES for image in images)
