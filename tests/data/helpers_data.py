"""Data set files to write, and reference values, for several tests."""

import json

import jax
import numpy as np
import pycocotools.mask
from ml_collections import ConfigDict
from PIL import Image

GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # in COCO's category ids
CATEGORIES = [number for number in range(1, 91) if number not in GAPS]
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


# ----------------------------------------------------------------------------- COCO


def runs_of(mask):
    """Column-wise run lengths of a mask, starting outside of it."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    return np.diff(np.concatenate([[0], edges])).tolist()


def segmentation_of(kind, mask):
    """A mask in one of COCO's three encodings; polygons require a rectangle."""
    if kind == "polygon":
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        middle = (left + right) // 2
        halves = [(left, middle), (middle, right)] if middle > left else [(left, right)]
        return [[float(x) for x in (a, top, b, top, b, bottom, a, bottom)] for a, b in halves]
    if kind == "runs":
        return {"size": list(mask.shape), "counts": runs_of(mask)}
    text = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": text["counts"].decode()}


def rectangle(size, top, bottom, left, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def random_object(rng, size, kind):
    edges = [np.sort(rng.choice(side + 1, 2, replace=False)) for side in size]
    mask = rectangle(size, *edges[0], *edges[1])
    if kind != "polygon":
        mask &= rng.random(size) < 0.8
        mask[edges[0][0], edges[1][0]] = True
    return mask


class Drawn:
    """A COCO folder, with the (category, crowd, mask) of each object in an image."""

    def __init__(self, root, split, rng):
        self.root, self.split, self.objects = root, split, {}
        self.file = root / "annotations" / f"instances_{split}.json"
        categories = [{"id": number, "name": f"thing {number}"} for number in CATEGORIES]
        rng.shuffle(categories)
        self.json = {"info": {"year": 2017}, "images": [], "annotations": []}
        self.json["categories"] = categories
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (root / split).mkdir()

    def add_image(self, image_id, size):
        pixels = np.random.default_rng(image_id).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(self.image(image_id))
        sides = {"height": size[0], "width": size[1]}
        self.json["images"].append({"id": image_id, "file_name": f"{image_id:012d}.jpg"} | sides)
        self.objects[image_id] = []

    def add_object(self, image_id, category, mask, kind="runs", crowd=False):
        self.objects[image_id].append((category, crowd, mask))
        annotations = self.json["annotations"]
        ids = {"id": 1000 - len(annotations), "image_id": image_id, "category_id": category}
        shown = {"segmentation": segmentation_of(kind, mask), "area": float(mask.sum())}
        annotations.append(ids | shown | {"iscrowd": int(crowd)})

    def write(self):
        self.file.write_text(json.dumps(self.json))
        return self

    def image(self, image_id):
        return self.root / self.split / f"{image_id:012d}.jpg"

    def label(self, image_id, categories=CATEGORIES):
        """Each pixel shows its smallest object, and the last of equally small ones."""
        objects = [part for part in self.objects[image_id] if part[0] in categories]
        size = next((i["height"], i["width"]) for i in self.json["images"] if i["id"] == image_id)
        label = np.zeros(size, np.uint8)
        for y, x in np.ndindex(size):
            here = [
                (mask.sum(), -order, CATEGORIES.index(category) + 1)
                for order, (category, crowd, mask) in enumerate(objects)
                if mask[y, x] and not crowd
            ]
            crowded = any(mask[y, x] for _, crowd, mask in objects if crowd)
            label[y, x] = min(here)[-1] if here else 255 * crowded
        return label
