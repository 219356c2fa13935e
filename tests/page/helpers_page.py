"""Pictures, and a model that tells their colours, for the tests of the page."""

import contextlib
import io
import socket
import warnings

import numpy as np
from PIL import Image

from fsseg_jax import load
from fsseg_jax.page import folder

MODEL = "shapes:panet"
SIZE = (400, 300)  # of images, width and height
NONE = 254  # what is not marked


def disc(centre, radius):
    """Where an image shows a disc."""
    columns, rows = np.meshgrid(*map(np.arange, SIZE))
    return np.hypot(columns - centre[0], rows - centre[1]) < radius


# Of the images of `files`: where the first shows something red and green, and the second.
RED, GREEN = disc((130, 150), 70), disc((310, 110), 50)
OTHERS = disc((260, 170), 70), disc((90, 100), 50)


def painting(red, green=None, seed=0):
    """Things on a blue ground, all noisy."""
    colours = np.where(red[..., None], (200, 60, 40), (40, 70, 170))
    if green is not None:
        colours = np.where(green[..., None], (60, 190, 60), colours)
    noise = np.random.default_rng(seed).integers(-25, 25, colours.shape)
    return (colours + noise).astype(np.uint8)


def encoded(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def model(size):
    """A model of random weights, which tell red from blue."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load(MODEL, image_size=size, devices=1)


@contextlib.contextmanager
def served(segmenter):
    """The address of a page, while it is there."""
    from fsseg_jax.page import app, server

    try:
        with server.Server(app.build(segmenter), socket.create_server(("127.0.0.1", 0))) as page:
            yield page.address
    finally:
        folder.remove()
        folder.create.cache_clear()
