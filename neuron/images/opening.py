"""Images as clients send them: read within bounds, turned upright, in colours on white."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

from ipc.errors import CortexError
from neuron.refusals import bad_request

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000  # of a file, which would be 300 MB in memory
UPSIDE = 0x0112  # the EXIF tag that says how an image is turned
LYING = (5, 6, 7, 8)  # its values for those that lie on a side
WHITE = (255, 255, 255)


def opened(data: bytes, param: str) -> Image.Image:
    """The image in a file, of which nothing is read but its header.

    Raises:
        CortexError: BAD_REQUEST naming `param`: it is none, or one of too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is checked here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise bad_request(param, f"{param} has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # decoders fail in any way
        raise _none(param, error) from error
    columns, rows = image.size
    if columns * rows > MAX_PIXELS:
        raise bad_request(param, f"{param} has {columns} x {rows} pixels, more than {MAX_PIXELS:,}")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Rows and columns, once it is turned as its camera was held."""
    columns, rows = image.size
    try:
        lies = image.getexif().get(UPSIDE) in LYING
    except Exception:  # of a damaged header nothing can be known
        lies = False
    return (columns, rows) if lies else (rows, columns)


def in_colours(image: Image.Image, param: str) -> Image.Image:
    """Its pixels in red, green and blue: of a film its first one, and what is transparent is white.

    Raises:
        CortexError: BAD_REQUEST naming `param`, the file is damaged.
    """
    try:
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # the pixels are there; what stands beside them is damaged
            image = image.copy()
        if image.mode.startswith(("I", "F")):  # of 16 bits: converting would cut what is above 255
            image = image.convert("I").point(lambda value: value / 257).convert("L")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, (*WHITE, 255))
            image = Image.alpha_composite(ground, image)
        return image.convert("RGB")
    except CortexError:
        raise
    except Exception as error:
        raise _none(param, error) from error


def _none(param: str, error: Exception) -> CortexError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    if "cannot identify image file" in reason:
        reason = f"it is none of {', '.join(FORMATS)}"
    return bad_request(param, f"{param} cannot be read as an image: {reason}")
