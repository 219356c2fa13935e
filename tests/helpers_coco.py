"""Folders of COCO's format to write, and the labels that they have."""

import json

import numpy as np
import pycocotools.mask
from PIL import Image

GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # in COCO's category ids
CATEGORIES = [number for number in range(1, 91) if number not in GAPS]
NUMBERS = {category: number for number, category in enumerate(CATEGORIES, 1)}  # class ids


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
                (mask.sum(), -order, NUMBERS[category])
                for order, (category, crowd, mask) in enumerate(objects)
                if mask[y, x] and not crowd
            ]
            crowded = any(mask[y, x] for _, crowd, mask in objects if crowd)
            label[y, x] = min(here)[-1] if here else 255 * crowded
        return label
