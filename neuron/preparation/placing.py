"""Images in a prompt: each mark that the chat template left for one becomes the tokens that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import msgspec

from ipc.errors import CortexError
from ipc.messages.conversation import Message
from ipc.worker_messages import PlacedImage
from neuron.images.sizing import Sized, pixels, views
from neuron.refusals import bad_request, too_long
from neuron.text import content
from workers.checkpoints.vision import Vision

MAX_BYTES = 128 << 20  # of the pixels of one request: some 43,000 tokens of Qwen's
# Gemma 3's words
WITH_CROPS = "Here is the original image {} and here are some crops to help you see better {}"


class PreparedImage(msgspec.Struct, array_like=True):
    """An image as the worker takes it: where its tokens are, and its pixels as `ImageData` has them."""

    placed: PlacedImage
    pixels: bytes


def shown(messages: Sequence[Message], vision: Vision) -> list[list[Sized]]:
    """Each image of a conversation as the model is shown it, see `views`.

    Raises:
        CortexError: BAD_REQUEST naming what is no image.
    """
    return [views(part.data, vision, param) for param, part in content.images(messages)]


def place(
    ids: list[int],
    messages: Sequence[Message],
    images: Sequence[Sequence[Sized]],
    vision: Vision,
    context_length: int | None,
    read: bool,
    write: Callable[[Sequence[int]], str],
    contexts: int = 1,
) -> tuple[list[int], list[PreparedImage]]:
    """The tokens of a prompt with images.

    Args:
        ids: those of its text, with a mark for each image.
        messages: that have the images.
        images: as `shown` has them.
        context_length: of the model; None: there may be any number of tokens.
        contexts: how many contexts' worth of them there may be.
        read: the images themselves, too; else only the tokens that they are.
        write: how a text says tokens.

    Raises:
        CortexError: BAD_REQUEST naming what is damaged or has marks for none, or CONTEXT_LENGTH_EXCEEDED.
    """
    _refuse_unshown(ids, vision, lambda token: content.says(messages, write([token])))
    if vision.mark != vision.token and vision.token in ids:
        where, token = content.says(messages, write([vision.token])), write([vision.token])
        raise bad_request(where, f"{where} has a token of an image, {token}, and no image: leave it out")
    found = list(chain.from_iterable(images))
    if (marks := ids.count(vision.mark)) != len(found):
        raise _miscounted(messages, len(found), marks, write([vision.mark]))
    if not found:
        return ids, []
    around = len(_lead(vision)) + len(_tail(vision)) - 1
    total = len(ids) + sum(around + image.tokens for image in found)
    if context_length is not None and total >= contexts * context_length:
        raise too_long(total, context_length, "messages", None)
    if 3 * vision.side**2 * sum(image.rows * image.columns for image in found) > MAX_BYTES:
        raise bad_request("messages", f"the images come to more than {MAX_BYTES >> 20} MiB of pixels")
    return _placed(ids, found, vision, read)


def _miscounted(messages: Sequence[Message], images: int, marks: int, mark: str) -> CortexError:
    where = content.says(messages, mark)
    return bad_request(
        where,
        f"{where}: the prompt has {images} images, and {marks} times the model's mark for one, {mark}: its "
        "text must not have it, nor the template leave images out",
    )


def refuse_marks(ids: Sequence[int], vision: Vision | None, param: str) -> None:
    """BAD_REQUEST for tokens of an image where there can be none: the model would see whatever it likes."""
    if vision is None:
        return
    _refuse_unshown(ids, vision, lambda token: param)
    for token in dict.fromkeys((vision.mark, vision.token)):
        if token in ids:
            raise bad_request(
                param,
                f"{param} has the model's mark for an image (token {token}), and no image stands behind it: "
                "images come in messages",
            )


def _refuse_unshown(ids: Sequence[int], vision: Vision, where: Callable[[int], str]) -> None:
    """The same for marks of what the model is never shown; `where` names the field that has one."""
    for token in vision.unshown:
        if token in ids:
            param = where(token)
            text = f"{param} has the model's mark for a film or a sound (token {token})"
            raise bad_request(param, f"{text}, and none is shown to it here: leave it out")


def _placed(
    ids: list[int], found: Sequence[Sized], vision: Vision, read: bool
) -> tuple[list[int], list[PreparedImage]]:
    whole: list[int] = []
    images: list[PreparedImage] = []
    done = 0
    for image in found:
        mark = ids.index(vision.mark, done)
        whole += ids[done:mark] + _lead(vision)
        if read:
            colours, digest = pixels(image, vision)
            place, together = len(whole), vision.together > 0
            about = image.rows, image.columns, image.gap, together, vision.in_line
            placed = PlacedImage(digest, place, *about, vision.look_cost(image.rows * image.columns))
            images.append(PreparedImage(placed, colours))
        whole += _tokens(image, vision) + _tail(vision)
        done = mark + 1
    return whole + ids[done:], images


def around_marks(
    text: str,
    messages: Sequence[Message],
    images: Sequence[Sequence[Sized]],
    vision: Vision,
    write: Callable[[Sequence[int]], str],
) -> str:
    """The text of a prompt, with what belongs around each mark for an image, and a mark for each crop of one.
    It is put there before the text becomes tokens: line ends beside others are other tokens.

    Raises:
        CortexError: BAD_REQUEST naming what has marks for no image.
    """
    if (about := vision.siglip) is None:
        return text
    mark = write([about.mark])
    one = f"\n\n{mark}{write([about.image_end])}\n\n"
    if about.crops is None:
        return text.replace(mark, one)
    first, *others = text.split(mark)
    if len(others) != len(images):
        raise _miscounted(messages, len(images), len(others), mark)
    crops = (" ".join([one] * (len(each) - 1)) for each in images)
    marks = [WITH_CROPS.format(one, each) if each else one for each in crops]
    return first + "".join(each + behind for each, behind in zip(marks, others, strict=True))


def _lead(vision: Vision) -> list[int]:
    """What stands before the tokens of an image: of its mark what stays there, or what begins each."""
    if vision.gemma4 is not None:
        return [vision.gemma4.image_start]
    return [] if vision.mark == vision.token else [vision.mark]


def _tail(vision: Vision) -> list[int]:
    """What stands behind them, where the template, or text around marks, has none of it."""
    return [] if vision.gemma4 is None else [vision.gemma4.image_end]


def _tokens(image: Sized, vision: Vision) -> list[int]:
    """What stands for an image in a prompt."""
    if (about := vision.pixtral) is None:
        return [vision.token] * image.tokens
    row = [vision.token] * image.columns
    return [*([*row, about.line_end] * (image.rows - 1)), *row, about.image_end]
