"""A page on this computer to try a model out: python -m fsseg_jax.demo --workdir=panet_vgg16

--workdir is whatever `fsseg_jax.load` takes: the folder of a run, a saved model, a configuration
or its name, or hf://owner/name of a model on the hub. On the page you paint an object on an image,
or a box around it, drop other images, and see where the object is in them.

The page can only be opened on this computer; to reach it from another one, use
`ssh -L 7860:localhost:7860 COMPUTER`. What is uploaded goes when the page ends. It needs Gradio:
pip install -e '.[demo]'
"""

import copy
import functools
import html
import io
import logging
import os
import pathlib
import signal
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from jaxtyping import UInt8

from fsseg_jax import command_line, interrupts
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.report import WAY_COLOURS
from fsseg_jax.page import folder
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.output import save_mask, small_overlay
from fsseg_jax.prediction.pictures import as_image
from fsseg_jax.prediction.segmenter import Segmenter

try:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this computer
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder.FOLDER)
    import gradio as gr
    from starlette.middleware import Middleware

    from fsseg_jax.page import guard, limits
except ImportError:  # it is an optional dependency
    if not TYPE_CHECKING:  # code that needs it runs only where it is installed
        gr = None

HOST, PORT = "127.0.0.1", 7860
# Signals that end the page: Ctrl-C, kill, and the end of the terminal, which Windows does not have.
ENDS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x)]
LONG_SIDE = 800  # pixels of what the page shows; masks have the size of their images
BRUSH = "#{:02x}{:02x}{:02x}".format(*WAY_COLOURS[0]), 0.6  # translucent: the object stays visible
KEPT = 86400  # seconds that uploaded files are kept
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
            "There is no image that the browser can read: drop one that shows the object."
        )
    image = as_image(drawing["background"], "the image")
    painted = np.zeros(image.shape[:2], bool)
    for layer in drawing["layers"]:
        painted |= layer[..., 3] > 0
    if not painted.any():
        raise UserError("Nothing is painted: paint the object with the brush, or a box around it.")
    if boxed:
        rows, columns = (np.flatnonzero(painted.any(axis)) for axis in (1, 0))
        painted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return LabelledImage(image, painted.astype(np.uint8))


shown = functools.partial(small_overlay, long_side=LONG_SIDE)


def archive(names: Sequence[str], masks: Sequence[UInt8[np.ndarray, "_ _"]]) -> bytes:
    """A zip file of masks, as `fsseg_jax.predict` writes them: that of `a.jpg` is `a.png`."""
    file, taken = io.BytesIO(), set()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, mask in zip(names, masks, strict=True):
            stem = pathlib.Path(name).stem
            while stem in taken:  # images from several folders may have one name
                stem += "_"
            taken.add(stem)
            with zipped.open(f"{stem}.png", "w") as png:
                save_mask(mask, png)
    return file.getvalue()


# ----------------------------------------------------------------------------- the page


def build(segmenter: Segmenter) -> "gr.Blocks":
    """The page of a model, for `serve`. Each visitor has supports of their own."""
    folder.create()
    limits.bound_editors()
    # Compiled before the first visitor waits; the visitors' copies share the result.
    size, progress = segmenter.config.image_size, gr.Progress()
    blank = np.zeros((size, size, 3), np.uint8)
    segmenter = copy.copy(segmenter).fit([blank], masks=[np.eye(size, dtype=bool)])
    segmenter.predict(blank, batch_size=1)
    what = f"{segmenter.config.method} on {segmenter.config.backbone}, at {size} x {size} pixels"

    def find(
        supports: list[LabelledImage], paths: list[str] | None, progress: "gr.Progress" = progress
    ) -> tuple[list[tuple[np.ndarray, str]], Any]:
        pictures, masks = segment(segmenter, supports, paths or [], progress)
        zipped = archive([name for _, name in pictures], masks)
        file = gr.processing_utils.save_bytes_to_cache(zipped, "masks.zip", download.GRADIO_CACHE)
        return pictures, gr.update(value=file, interactive=bool(masks))

    with gr.Blocks(title="Few-shot segmentation", delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(
            "# Few-shot segmentation\n"
            f"Show an object once, and find it in other images. The model: {what}."
        )
        supports = gr.State([])
        with gr.Row():
            with gr.Column():
                drawing, boxed, to_add, to_clear, shots = _support_column()
            with gr.Column():
                queries, to_segment, results, download = _query_column()
        for button, function, inputs, outputs in (
            (to_add, add, [drawing, boxed, supports], [shots, supports, drawing]),
            (to_clear, lambda: ([], []), [], [shots, supports]),
            (to_segment, find, [supports, queries], [results, download]),
        ):
            button.click(_warning(function), inputs, outputs, show_progress_on=outputs[0])
    return page.queue(api_open=False)


def add(
    drawing: Mapping[str, Any] | None, boxed: bool, supports: Sequence[LabelledImage]
) -> tuple[list[np.ndarray], list[LabelledImage], None]:
    """Adds what is painted to the supports: their pictures, they, and an empty editor."""
    if len(supports) >= limits.FILES:
        raise UserError(f"There are {limits.FILES} supports, which is all that the page takes.")
    supports = [*supports, support_from(drawing, boxed)]
    return [shown(*support) for support in supports], supports, None


def segment(
    segmenter: Segmenter,
    supports: Sequence[LabelledImage],
    paths: Sequence[str],
    progress: "gr.Progress",
) -> tuple[list[tuple[np.ndarray, str]], list[np.ndarray]]:
    """Pictures with names, and masks, of the images that can be read; others raise a warning.

    Raises:
        UserError: there are no supports or no images, there are too many, or the page is full.
    """
    if not supports:
        raise UserError("There is no support yet: paint the object in step 1, and add it.")
    if not paths:
        raise UserError("There is no image to segment yet: drop some in step 2.")
    if len(paths) > limits.FILES:
        raise UserError(
            f"There are {len(paths)} images, but the page takes up to {limits.FILES} at a time: "
            "remove some, or use fsseg_jax.predict."
        )
    if folder.used() > guard.TOTAL:
        raise UserError(guard.FULL)
    images, labels = zip(*supports, strict=True)
    fitted = copy.copy(segmenter).fit(images, masks=labels)
    paths = [path for path in paths if _is_taken(path)]
    stream = fitted.stream(paths, batch_size=1, skip_errors=True)
    pictures, masks = [], []
    for path, mask in zip(paths, progress.tqdm(stream, total=len(paths)), strict=True):
        if isinstance(mask, UserError):
            _warn(mask, path)
            continue
        name = pathlib.Path(path).name
        pictures.append((shown(as_image(path, name), mask), name))
        masks.append(mask)
    return pictures, masks


def _is_taken(path: str) -> bool:
    """Whether an image is small enough; raises a warning otherwise."""
    try:
        limits.check_pixels(path, path)
    except UserError as error:
        _warn(error, path)
        return False
    return True


def _warn(error: UserError, path: str) -> None:
    """Shows an error of an uploaded file, by its name, as a warning."""
    gr.Warning(html.escape(str(error).replace(path, pathlib.Path(path).name)))


_GALLERY: dict[str, Any] = {"object_fit": "contain", "format": "jpeg"}


def _support_column() -> tuple[Any, ...]:
    """Step 1: the editor, its choice of mask or box, two buttons and the supports so far."""
    gr.Markdown("## 1. Show the object")
    drawing = gr.ImageEditor(
        label="Image that shows it",
        placeholder="Drop an image here\nthen paint the object with the brush",
        sources=("upload", "clipboard"),
        brush=gr.Brush(colors=[BRUSH], color_mode="fixed"),
        transforms=(),  # what is painted stays where it is on the image
        layers=False,
        format="png",
        height=480,
        elem_id="drawing",
    )
    boxed = gr.Radio(
        [("the object itself", False), ("a box around it", True)],
        value=False,
        label="What I paint is",
        info="For a box, a stroke from one corner to the opposite one is enough.",
        elem_id="boxed",
    )
    with gr.Row():
        to_add = gr.Button("Add as a support", variant="primary", elem_id="add")
        to_clear = gr.Button("Remove all supports", elem_id="clear")
    layout = {"columns": 4, "fit_columns": False, "height": 180}
    shots = gr.Gallery(label="Supports", **layout, **_GALLERY, elem_id="supports")
    return drawing, boxed, to_add, to_clear, shots


def _query_column() -> tuple[Any, ...]:
    """Steps 2 and 3: the images to segment, the button, the results and their download."""
    gr.Markdown(f"## 2. Find it elsewhere\n{limits.SENTENCE}")
    queries = gr.File(
        label="Images to segment",
        file_count="multiple",
        file_types=["image"],
        height=180,
        elem_id="queries",
    )
    to_segment = gr.Button("Segment", variant="primary", elem_id="segment")
    gr.Markdown("## 3. Results")
    results = gr.Gallery(label="Where it is", columns=2, **_GALLERY, elem_id="results")
    download = gr.DownloadButton("Download the masks", interactive=False, elem_id="download")
    return queries, to_segment, results, download


def _warning(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with its UserError shown on the page as a warning."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            gr.Warning(html.escape(str(error)))  # Gradio's errors would cover the painting.
            return gr.skip()

    return wrapped


def serve(page: "gr.Blocks", port: int) -> str:
    """Serves the page to this computer alone, in the background, and returns its address.

    Raises:
        UserError: another program has taken the port.
    """
    try:
        _, address, _ = page.launch(
            theme=gr.themes.Default(primary_hue="pink", font="system-ui", font_mono="monospace"),
            server_name=HOST,
            server_port=port,
            max_file_size=limits.BYTES,
            app_kwargs={"middleware": [Middleware(guard.Guard, used=folder.used)]},
            num_workers=0,  # they would not know the guard
            mcp_server=False,
            enable_monitoring=False,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise _unusable(port, error) from None
    return address


# ----------------------------------------------------------------------------- the program


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    port_help = f"of the page; {PORT} by default, 0 for any that is free"
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
    port = _free_port(arguments.port)
    command_line.start(machine)
    segmenter = load(arguments.workdir, **settings)
    logger.info(describe(segmenter.mesh))
    for number in ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    interrupts.last_things.append(folder.remove)
    tempfile.tempdir = str(folder.create())  # where Gradio puts what it has of an upload
    page = build(segmenter)
    print(f"The page is at {serve(page, port)} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


def _end(number: int, _: object) -> NoReturn:
    """Ends the page as after an error, so that its folder goes."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _free_port(port: int) -> int:
    """The port, or a free one for 0; raises UserError, before a model is loaded, if it is taken."""
    try:
        with socket.create_server((HOST, port)) as server:
            return server.getsockname()[1]
    except (OverflowError, OSError) as error:
        raise _unusable(port, error) from None


def _unusable(port: int, error: Exception) -> UserError:
    return UserError(
        f"--port = {port} cannot be used ({error}): choose another, as --port={PORT + 1}, or 0 for "
        "any that is free."
    )


if __name__ == "__main__":
    command_line.run(main)
