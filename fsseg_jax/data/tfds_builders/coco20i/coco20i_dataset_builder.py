"""COCO-20i for TensorFlow Datasets."""

import os

from fsseg_jax.data.sources.coco import COCO, FOLDS
from fsseg_jax.data.tfds_builders.benchmark import Benchmark


class Builder(Benchmark):
    """COCO-20i: COCO's 80 classes; folds "a" (PANet), "b" (HSNet) and "canet" hold out others."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "COCO's folder, with annotations and images of one year."
    SPLITS = {"train": "train", "validation": "val"}  # noqa: RUF012
    VARIANTS = tuple(FOLDS)

    def open(self, root: os.PathLike, split: str, variant: str) -> COCO:
        """Opens COCO's folder."""
        return COCO(root, split, variant)

    def image(self, source: COCO, index: int) -> str:
        """The file of an image."""
        return source.images[index]
