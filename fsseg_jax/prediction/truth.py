"""Compares masks predicted for files with true masks.

As in `metrics`, pixels are summed over all images before the ratio is taken.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from fsseg_jax.data.images import check_size, image_size, read_label
from fsseg_jax.data.listing import is_part
from fsseg_jax.data.masks import read_mask
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.metrics import iou, label_counts
from fsseg_jax.prediction.pictures import as_labels


class Truth:
    """True masks of images in files.

    The mask of an image called `name` is `name.png`: class numbers, where 255 is ignored; or, if
    there is only one class, any kind of mask that `pictures.as_labels` accepts. Alternatively, each
    class has a folder of its name with masks `class/name.png` that are not black where the class
    is; a missing file means that the image does not show the class.

    Args:
        names: the name of each image.
        classes: names of the classes 1, 2 ...

    Raises:
        UserError: there is no mask, or one has another size than its image.
    """

    def __init__(
        self, folder: pathlib.Path, names: Mapping[str, str], classes: Sequence[str]
    ) -> None:
        self.classes = tuple(classes)
        # The mask of each class by image; that of class 0 shows all of them.
        self._files: dict[str, dict[int, pathlib.Path]] = {}
        for image, name in names.items():
            places = {0: folder}
            # A name of a class that is not the name of a folder would lead elsewhere.
            places |= {n: folder / x for n, x in enumerate(classes, 1) if is_part(x)}
            files = {number: place / f"{name}.png" for number, place in places.items()}
            found = {number: path for number, path in files.items() if os.path.isfile(path)}
            if found:
                self._files[image] = {0: found[0]} if 0 in found else found
        if not self._files:
            raise UserError(
                f"--truth = {folder} has no mask of any of the images: name them after the images, "
                f"as {next(iter(names.values()))}.png."
            )
        # Checked now, because masks are compared only after all images are segmented.
        parallel_map(self._check_sizes, list(self._files), "sizes of the true masks")

    def read(self, image: str) -> UInt8[np.ndarray, "height width"] | None:
        """The true mask of an image at its size, or None if it has none: 0 for the background, 1, 2
        ... for classes, 255 for ignored pixels.

        Raises:
            UserError: a file cannot be read, has another size, or shows another class.
        """
        files = self._files.get(image)
        if files is None:
            return None
        if 0 not in files:
            label = np.zeros(image_size(image), np.uint8)
            for number, path in files.items():
                mask = read_mask(path)
                check_size(mask, str(path), image)
                label[mask == 1] = number
                label[(mask == IGNORE) & (label == 0)] = IGNORE
            return label
        path, one = files[0], len(self.classes) == 1
        # 255 alone is ambiguous: with one class it is that class, with several it is ignored.
        if one:
            (label,), numbers = as_labels([path], [str(path)])
        else:
            label, numbers = read_label(path), ()
        check_size(label, str(path), image)
        other = np.setdiff1d(label, [*range(len(self.classes) + 1), IGNORE]).tolist()
        if other := numbers[1:] or other:
            raise UserError(
                f"{path} has the number {other[0]}, but the last class is {len(self.classes)}: "
                f"number them as in the predicted masks, and use {IGNORE} for ignored pixels."
            )
        return label

    def compare(self, predicted: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Compares predicted masks with the true ones.

        Args:
            predicted: the file of the predicted mask of each image.

        Returns:
            `per_class`, `mean_iou` and `binary_iou` in percent, as in `metrics.run_metrics`, except
            that every image counts for every class (`mean_iou_star` there); None for classes that
            no true mask shows, and for empty means. `photographs` is the number of images compared,
            and `without_truth` that of images without a true mask.

        Raises:
            UserError: see `read`.
        """

        def count(image: str) -> Int[np.ndarray, "class 3"]:
            label = self.read(image)
            assert label is not None  # `known` are the images with true masks
            found = read_label(predicted[image])
            if found.shape != label.shape or found.max(initial=0) > len(self.classes):
                raise UserError(
                    f"{predicted[image]} is not the mask that was predicted: remove it, and the "
                    "same command makes it again."
                )
            return label_counts(found, label, len(self.classes))

        known = [image for image in predicted if image in self._files]
        counts = np.zeros((1 + len(self.classes), 3), np.int64)
        for of_image in parallel_map(count, known, "true masks"):
            counts += of_image
        shown = counts[:, 0] + counts[:, 2] > 0
        values = iou(counts)
        per_class = {
            name: float(values[number]) if shown[number] else None
            for number, name in enumerate(self.classes, 1)
        }
        ious = [value for value in per_class.values() if value is not None]
        binary = (values[0] + iou(counts[1:].sum(0))) / 2
        return {
            "mean_iou": sum(ious) / len(ious) if ious else None,
            "binary_iou": None if np.isnan(binary) else float(binary),
            "per_class": per_class,
            "photographs": len(known),
            "without_truth": len(predicted) - len(known),
        }

    def _check_sizes(self, image: str) -> None:
        try:
            image_size(image)
        except UserError:  # the image will be skipped
            return
        for path in self._files[image].values():
            size = np.broadcast_to(False, image_size(path))  # which takes no memory
            check_size(size, str(path), image)


def table(results: Mapping[str, Any]) -> str:
    """The results of `Truth.compare` as lines to print."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    lines = [f"{name:>16} {number(value):>5}" for name, value in results["per_class"].items()]
    mean, binary = number(results["mean_iou"]), number(results["binary_iou"])
    none = results["without_truth"]
    lines.append(
        f"mean-IoU {mean}, binary-IoU {binary} ({results['photographs']} images"
        f"{f'; {none} more without a true mask' if none else ''})"
    )
    return "\n".join(lines)
