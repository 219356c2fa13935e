"""How much a page takes: images, their bytes and their pixels, classes, visitors."""

from fsseg_jax.evaluation.report import WAY_COLOURS

FILES = 100  # images of a visitor
BYTES = 50 * 10**6  # of an uploaded file
PIXELS = 80 * 10**6  # of an image
# Pixels of the long side of what the page shows, marks and segments: several times what networks
# see, and little enough that a phone can edit it and a hundred fit into memory.
LONG_SIDE = 1600
THUMBNAIL = 240  # pixels of the long side of the small pictures of the images
CLASSES = len(WAY_COLOURS)  # whose colours differ, and which have a key each: 1 to 9
NAME = 60  # characters of a class's name
VISITORS = 200  # at a time
KEPT = 86400  # seconds without a request after which a visitor's images go
SENTENCE = (
    f"Up to {FILES} images, each of up to {BYTES // 10**6} MB and {PIXELS // 10**6} million "
    "pixels. They stay on this computer, and go when the page ends."
)
