"""Data set files to write, and reference values, for several tests."""

import json

import jax
import numpy as np
from helpers_coco import rectangle
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax.data import training_items, training_pipeline
from fsseg_jax.devices import make_mesh

SIZE = (20, 30)  # height and width of most images
SQUARE = [[2, 3], [11, 3], [11, 9], [2, 9]]


def rows_of(table):
    """The rows (image, class id, pixels) of a class table."""
    rows = zip(table.image, table.class_id, table.pixels, strict=True)
    return {tuple(map(int, row)) for row in rows}


def chi_square(drawn, options):
    """Pearson's statistic against the uniform distribution, in standard deviations."""
    counts = np.array([(drawn == option).sum() for option in options])
    assert counts.sum() == len(drawn)
    expected = len(drawn) / len(options)
    freedom = len(options) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


# ----------------------------------------------------------------------------- pipelines


def first_batches(config, source, count=3, devices=1):
    """The first batches, concatenated, as NumPy arrays."""
    mesh = make_mesh(devices)
    pipeline = training_pipeline(config, source, training_items(config.data, source), mesh)
    draw = jax.jit(pipeline.draw)
    batches = [draw(pipeline.feed(1), 0, step) for step in range(count)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def options(flip=False, scale=(1.0, 1.0), rotation=0.0):
    """An augmentation, of queries too."""
    drawn = {"flip": flip, "scale": scale, "rotation": rotation}
    return ConfigDict(drawn | {"query": True, "crop_query": True})


ALL = options(flip=True, scale=(0.6, 1.8), rotation=40.0)


def assert_same_picture(result, expected):
    """Up to rounding, as Pillow also rounds between its two passes."""
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 2


# ----------------------------------------------------------------------------- folders


def write_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_mask(path, box=(3, 4, 10, 12), size=SIZE, value=255):
    """Writes and returns a mask of the rows and columns `box`."""
    mask = rectangle(size, box[0], box[2], box[1], box[3])
    Image.fromarray((mask * value).astype(np.uint8)).save(path)
    return mask


def write_labelme(path, *shapes, size=SIZE, **fields):
    """Shapes are (label, kind, points)."""
    shapes = [
        {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}}
        for label, kind, points in shapes
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "x.jpg"}
    content |= {"imageData": None, "imageHeight": size[0], "imageWidth": size[1]} | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def write_coco(path, file_names, annotations, categories, size=SIZE):
    """Annotations are (number of the image, category, polygon)."""
    content = {
        "images": [
            {"id": 10 + n, "file_name": name, "height": size[0], "width": size[1]}
            for n, name in enumerate(file_names)
        ],
        "annotations": [
            {"id": n, "image_id": 10 + image, "category_id": category, "iscrowd": 0}
            | {"segmentation": [polygon], "area": 1, "bbox": [0, 0, 1, 1]}
            for n, (image, category, polygon) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# ----------------------------------------------------------------------------- FSS-1000


def write_class(folder, images=2, size=(16, 16), seed=0):
    """Writes images with masks of varying kinds; returns the true masks."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    inside = []
    for number in range(1, images + 1):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        grey = rng.choice(np.array([0, 20, 127, 128, 240, 255], np.uint8), size)
        mask = Image.fromarray(grey)
        (mask.convert("RGB") if number % 2 else mask).save(folder / f"{number}.png")
        inside.append(grey > 127)
    return inside


def write_lists(root, lists):
    for name, classes in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{c}\n" for c in classes))
