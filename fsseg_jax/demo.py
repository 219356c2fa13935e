"""A page on this computer to try a model out: python -m fsseg_jax.demo --workdir=panet_vgg16

--workdir is whatever `fsseg_jax.load` takes: the folder of a run, a saved model, a configuration
or its name, or owner/name of a model on the hub. On the page one paints a thing on an image,
or a box around it, drops other images, and sees where the thing is in them.

Only this computer can open the page; from another one, `ssh -L 7860:localhost:7860 COMPUTER`
brings it there. It needs Gradio: pip install -e '.[demo]'
"""

import copy
import functools
import html
import io
import logging
import os
import pathlib
import socket
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsseg_jax import command_line
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.report import WAY_COLOURS, overlay
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.output import PALETTE
from fsseg_jax.prediction.pictures import as_image
from fsseg_jax.prediction.segmenter import Segmenter

try:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this computer
    import gradio as gr
except ImportError:  # an extra
    if not TYPE_CHECKING:  # what needs it is called only where it is there
        gr = None

HOST, PORT = "127.0.0.1", 7860
LONG_SIDE = 800  # pixels of what the page shows; masks have the size of their images
BRUSH = "#{:02x}{:02x}{:02x}".format(*WAY_COLOURS[0]), 0.6  # one sees what one paints over
KEPT = 86400  # seconds that uploaded files are
logger = logging.getLogger("fsseg_jax.demo")  # as a program, the module has another name

# ----------------------------------------------------------------------------- pictures


def support_from(drawing: Mapping[str, Any] | None, boxed: bool) -> LabelledImage:
    """A support from what was painted over an image: 1 where it is painted.

    Args:
        drawing: the editor's value: the image, `background`, and `layers` of its size, RGBA
            in 0..255, transparent where nothing is painted.
        boxed: whether everything in the box around what is painted counts.

    Raises:
        UserError: there is no image, or nothing is painted on it.
    """
    if drawing is None or drawing["background"] is None:
        raise UserError(
            "There is no image that the browser can read: drop one that shows the thing."
        )
    image = as_image(drawing["background"], "the image")
    painted = np.zeros(image.shape[:2], bool)
    for layer in drawing["layers"]:
        painted |= layer[..., 3] > 0
    if not painted.any():
        raise UserError("Nothing is painted: paint the thing with the brush, or a box around it.")
    if boxed:
        rows, columns = (np.flatnonzero(painted.any(axis)) for axis in (1, 0))
        painted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return LabelledImage(image, painted.astype(np.uint8))


def shown(
    image: UInt8[np.ndarray, "height width 3"], label: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its label over it, at most `LONG_SIDE` pixels long."""
    small = Image.fromarray(image)
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    small_label = Image.fromarray(label).resize(small.size, Image.Resampling.NEAREST)
    return overlay(np.asarray(small), np.asarray(small_label))


def archive(names: Sequence[str], masks: Sequence[UInt8[np.ndarray, "height width"]]) -> bytes:
    """A zip file of masks, as `fsseg_jax.predict` writes them: that of `a.jpg` is `a.png`."""
    file, taken = io.BytesIO(), set()
    with zipfile.ZipFile(file, "w") as folder:
        for name, mask in zip(names, masks, strict=True):
            stem = pathlib.Path(name).stem
            while stem in taken:  # images from several folders may have one name
                stem += "_"
            taken.add(stem)
            picture = Image.fromarray(mask)
            picture.putpalette(PALETTE)
            with folder.open(f"{stem}.png", "w") as png:
                picture.save(png, "png")
    return file.getvalue()


# ----------------------------------------------------------------------------- the page


def build(segmenter: Segmenter) -> "gr.Blocks":
    """The page of a model, for `serve`. Each of its visitors has supports of their own."""
    # Compiled here, before anybody waits; the visitors' copies share what is compiled.
    size = segmenter.config.image_size
    blank = np.zeros((size, size, 3), np.uint8)
    segmenter = copy.copy(segmenter).fit([blank], masks=[np.ones((size, size), bool)])
    segmenter.predict(blank, batch_size=1)
    what = f"{segmenter.config.method} on {segmenter.config.backbone}, at {size} x {size} pixels"
    progress = gr.Progress()

    def add(
        drawing: dict[str, Any] | None, boxed: bool, supports: list[LabelledImage]
    ) -> tuple[list[np.ndarray], list[LabelledImage], None]:
        supports = [*supports, support_from(drawing, boxed)]
        return [shown(*support) for support in supports], supports, None

    def clear() -> tuple[list[np.ndarray], list[LabelledImage]]:
        return [], []

    def segment(
        supports: list[LabelledImage], paths: list[str] | None, progress: "gr.Progress" = progress
    ) -> tuple[list[tuple[np.ndarray, str]], Any]:
        if not supports:
            raise UserError("There is no support yet: paint the thing in step 1, and add it.")
        if not paths:
            raise UserError("There is no image to segment yet: drop some in step 2.")
        images, labels = zip(*supports, strict=True)
        fitted = copy.copy(segmenter).fit(images, masks=labels)
        stream = fitted.stream(paths, batch_size=1, skip_errors=True)
        pictures, names, masks = [], [], []
        for path, mask in zip(paths, progress.tqdm(stream, total=len(paths)), strict=True):
            name = pathlib.Path(path).name
            if isinstance(mask, UserError):
                gr.Warning(html.escape(str(mask).replace(path, name)))
                continue
            pictures.append((shown(as_image(path, name), mask), name))
            names.append(name)
            masks.append(mask)
        zipped = archive(names, masks)
        file = gr.processing_utils.save_bytes_to_cache(zipped, "masks.zip", download.GRADIO_CACHE)
        return pictures, gr.update(value=file, interactive=bool(masks))

    with gr.Blocks(title="Few-shot segmentation", delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(
            "# Few-shot segmentation\n"
            f"Show a thing once, and find it in other images. The model: {what}."
        )
        supports = gr.State([])
        gallery = {"object_fit": "contain", "format": "jpeg"}
        with gr.Row():
            with gr.Column():
                gr.Markdown("## 1. Show the thing")
                drawing = gr.ImageEditor(
                    label="Image that shows it",
                    placeholder="Drop an image here\nthen paint the thing with the brush",
                    sources=("upload", "clipboard"),
                    brush=gr.Brush(colors=[BRUSH], color_mode="fixed"),
                    transforms=(),  # what is painted stays where it is on the image
                    layers=False,
                    format="png",
                    height=480,
                    elem_id="drawing",
                )
                boxed = gr.Radio(
                    [("the thing itself", False), ("a box around it", True)],
                    value=False,
                    label="What I paint is",
                    info="For a box, a stroke from one corner to the opposite one is enough.",
                    elem_id="boxed",
                )
                with gr.Row():
                    to_add = gr.Button("Add as a support", variant="primary", elem_id="add")
                    to_clear = gr.Button("Remove all supports", elem_id="clear")
                shots = gr.Gallery(
                    **{"label": "Supports", "columns": 4, "fit_columns": False, "height": 180},
                    **gallery,
                    elem_id="supports",
                )
            with gr.Column():
                gr.Markdown("## 2. Find it elsewhere")
                queries = gr.File(
                    label="Images to segment",
                    file_count="multiple",
                    file_types=["image"],
                    height=180,
                    elem_id="queries",
                )
                to_segment = gr.Button("Segment", variant="primary", elem_id="segment")
                gr.Markdown("## 3. Results")
                results = gr.Gallery(label="Where it is", columns=2, **gallery, elem_id="results")
                download = gr.DownloadButton(
                    "Download the masks", interactive=False, elem_id="download"
                )
        for button, function, inputs, outputs in (
            (to_add, add, [drawing, boxed, supports], [shots, supports, drawing]),
            (to_clear, clear, [], [shots, supports]),
            (to_segment, segment, [supports, queries], [results, download]),
        ):
            button.click(_told(function), inputs, outputs, show_progress_on=outputs[0])
    return page


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose errors for users appear on the page."""

    @functools.wraps(function)
    def told(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            gr.Warning(html.escape(str(error)))  # (Gradio's errors cover what has been painted.)
            return gr.skip()

    return told


def serve(page: "gr.Blocks", port: int) -> str:
    """Opens the page to this computer alone, in the background, and returns its address."""
    _, address, _ = page.launch(
        theme=gr.themes.Default(primary_hue="pink", font="system-ui", font_mono="monospace"),
        server_name=HOST,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    return address


# ----------------------------------------------------------------------------- the program


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    port_help = f"of the page; {PORT} by default"
    arguments, overrides = command_line.parse(
        __doc__,
        argv,
        workdir="the folder of a run or of a saved model, a configuration, or a model on the hub",
        config=False,
        port={"type": int, "metavar": "N", "default": PORT, "help": port_help},
    )
    settings = command_line.settings(overrides)
    machine = command_line.first_config(None, overrides)
    if machine.distributed:
        raise UserError("--config.distributed: one process serves the page; leave it out.")
    if gr is None:
        raise UserError("the page needs Gradio, which is not installed: pip install -e '.[demo]'")
    _check_free(arguments.port)
    command_line.start(machine)
    segmenter = load(arguments.workdir, **settings)
    logger.info(describe(segmenter.mesh))
    page = build(segmenter)
    print(f"The page is at {serve(page, arguments.port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _check_free(port: int) -> None:
    """Finds out before a model is loaded whether the page can be served."""
    try:
        socket.create_server((HOST, port)).close()
    except (OverflowError, OSError) as error:
        raise UserError(
            f"--port = {port} cannot be used ({error}): choose another, as --port={PORT + 1}."
        ) from None


if __name__ == "__main__":
    command_line.run(main)
