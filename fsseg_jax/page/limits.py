"""How much a page takes at a time: images, their bytes and their pixels."""

import functools
import html
import io
from typing import Any

import gradio as gr

from fsseg_jax.data.images import open_picture
from fsseg_jax.errors import UserError

FILES = 100  # images to segment at a time, and supports
BYTES = 50 * 10**6  # of an uploaded file
PIXELS = 80 * 10**6  # of an image
SENTENCE = (
    f"Up to {FILES} images at a time, each of up to {BYTES // 10**6} MB and {PIXELS // 10**6} "
    "million pixels. They stay on this computer, and go when the page ends."
)
DRAWINGS = 20  # that browsers have sent and not added to the supports


def check_pixels(file: str | io.BytesIO, name: str) -> None:
    """Raises UserError, before an image is decoded, if it has too many pixels or is none."""
    try:
        with open_picture(file) as image:
            width, height = image.size
            if image.format == "EPS":  # a program, which Pillow has Ghostscript run
                raise UserError(f"{name} is PostScript, which is not taken: convert it to PNG.")
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from None
    if width * height > PIXELS:
        raise UserError(
            f"{name} is {width} x {height} pixels, but the page takes up to {PIXELS // 10**6} "
            "million: scale it down."
        )


def bound(editor: gr.ImageEditor) -> None:
    """Bounds what an editor of one layer keeps and decodes, which Gradio does not."""
    decode, accept = editor.convert_and_format_image, editor.accept_blobs

    def small(file: Any, **options: Any) -> Any:
        if file is None:
            return None
        try:
            check_pixels(io.BytesIO(file) if isinstance(file, bytes) else file.path, "The image")
            return decode(file, **options)
        except (OSError, ValueError, SyntaxError) as error:
            if not isinstance(error, UserError):
                error = f"The image cannot be read ({error}): replace the file."
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    @functools.wraps(accept)  # with Gradio's mark that browsers may call it
    def first(data: Any) -> None:
        if str(data.data.get("index")) not in ("0", "null", "None", ""):
            raise ValueError("the editor has one layer")
        accept(data)

    editor.convert_and_format_image, editor.accept_blobs = small, first
    editor.blob_storage = _Newest()


class _Newest(dict):
    """A dictionary of the newest entries; the editor never forgets what was not added."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > DRAWINGS:
            del self[next(iter(self))]
