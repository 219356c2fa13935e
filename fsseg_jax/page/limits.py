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
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from None
    if width * height > PIXELS:
        raise UserError(
            f"{name} is {width} x {height} pixels, but the page takes up to {PIXELS // 10**6} "
            "million: scale it down."
        )


_decode, _accept = gr.ImageEditor.convert_and_format_image, gr.ImageEditor.accept_blobs


def _decode_small(editor: gr.ImageEditor, file: Any, **options: Any) -> Any:
    """Decodes an image of the editor unless it is too large."""
    if file is None:
        return None
    try:
        check_pixels(io.BytesIO(file) if isinstance(file, bytes) else file.path, "The image")
        return _decode(editor, file, **options)
    except (OSError, ValueError, SyntaxError) as error:
        if not isinstance(error, UserError):
            error = f"The image cannot be read ({error}): replace the file."
        raise gr.Error(html.escape(str(error)), print_exception=False) from None


@functools.wraps(_accept)  # with Gradio's mark that browsers may call it
def _accept_few(editor: gr.ImageEditor, data: Any) -> None:
    """Keeps what browsers send before it is added, of one layer, and not for ever."""
    if str(data.data.get("index")) not in ("0", "null", "None", ""):
        raise ValueError("the editor has one layer")
    _accept(editor, data)
    while len(editor.blob_storage) > DRAWINGS:
        del editor.blob_storage[next(iter(editor.blob_storage))]


def bound_editors() -> None:
    """Bounds what the editors of this process keep and decode, which Gradio does not.

    Gradio makes a new editor for a visitor now and then, but of the same class, and it writes a
    file next to the source of any other class.
    """
    setattr(gr.ImageEditor, "convert_and_format_image", _decode_small)  # noqa: B010
    setattr(gr.ImageEditor, "accept_blobs", _accept_few)  # noqa: B010
