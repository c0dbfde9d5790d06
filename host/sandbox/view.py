"""What is done inside the viewer (``worker/files/files.py``): pictures made smaller, a PDF's text by page.

No part of the host: this file is run where nothing can be reached, and what it needs is imported here. Its
``view`` gets an open file and returns what can be sent as JSON; a ``fault`` says what keeps it from that.
"""

import base64
import codecs
import contextlib
import io
import logging
import pkgutil
import warnings
from importlib import import_module
from typing import Any, Final

KIND: Final[str] = globals()["KIND"]
"""Of what it will be asked; whoever runs this sets it. Each kind's libraries are loaded for it alone."""
MOST_PIXELS: Final = 100_000_000
SIDES: Final = (1568, 1024, 640)
"""Pixels of the longer side: the API makes larger ones smaller itself; then less and less."""
LARGEST_PAGE: Final = 200_000
"""Characters of a page's text."""

# A confined process can load nothing.
if KIND == "picture":
    import copy  # noqa: F401 - for GIF

    import PIL.GifImagePlugin
    import PIL.Image
    import PIL.ImageOps
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin  # for what cameras write into their pictures
    import PIL.WebPImagePlugin

    PIL.Image.preinit()
    PIL.Image.MAX_IMAGE_PIXELS = None
else:
    import pypdf

    for _module in pkgutil.walk_packages(pypdf.__path__, "pypdf."):
        with contextlib.suppress(ImportError):  # some need what isn't here
            import_module(_module.name)
for _name in ("utf-8", "utf-16", "utf-16-be", "utf-16-le", "latin-1", "cp1252", "ascii", "mac-roman"):
    codecs.lookup(_name)
logging.disable()  # nobody reads it
warnings.simplefilter("ignore")


def view(descriptor: int, kind: str, **asked: Any) -> dict[str, Any]:
    """Return a ``picture`` made smaller, or the ``text`` of a PDF's pages."""
    with open(descriptor, "rb", closefd=False) as file:
        return smaller(file, **asked) if kind == "picture" else text(file, **asked)


def smaller(file: Any, most: int) -> dict[str, Any]:
    """Return the picture with at most so many ``most`` bytes, as PNG where something shines through."""
    with PIL.Image.open(file, formats=("PNG", "JPEG", "GIF", "WEBP")) as picture:
        picture.draft("RGB", (SIDES[0], SIDES[0]))  # a JPEG is not even unpacked larger
        if picture.width * picture.height > MOST_PIXELS:
            return {"fault": f"it has {picture.width} x {picture.height} pixels"}
        shines = "A" in picture.getbands() or "transparency" in picture.info
        made = PIL.ImageOps.exif_transpose(picture).convert("RGBA" if shines else "RGB")
    for side in SIDES:
        made.thumbnail((side, side), reducing_gap=2.0)
        packed = io.BytesIO()
        made.save(packed, "PNG" if shines else "JPEG", quality=85)
        if packed.tell() <= most:
            return {"data": base64.b64encode(packed.getvalue()).decode()}
    return {"fault": "it stays too large"}


def text(file: Any, first: int, last: int, most: int) -> dict[str, Any]:
    """Return the text of pages ``first`` to ``last``, as many as have ``most`` characters, one at least."""
    document = pypdf.PdfReader(file)
    if document.is_encrypted and not document.decrypt(""):
        return {"fault": "it is encrypted"}
    pages: list[str] = []
    for number in range(first - 1, min(last, len(document.pages))):
        page = document.pages[number].extract_text()[:LARGEST_PAGE].encode(errors="replace").decode()
        most -= len(page)
        if pages and most < 0:
            break
        pages.append(page)
    return {"count": len(document.pages), "pages": pages}
