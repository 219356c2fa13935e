"""PASCAL-5i for TensorFlow Datasets."""

import os

from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.data.tfds_builders.benchmark import Benchmark


class Builder(Benchmark):
    """PASCAL-5i: PASCAL VOC 2012 with SBD's annotations; each of 4 folds holds out 5 classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A VOCdevkit folder with SegmentationClassAug and ImageSets/Segmentation/trainaug.txt."
    )
    SPLITS = {"train": "trainaug", "validation": "val"}  # noqa: RUF012

    def open(self, root: os.PathLike, split: str, variant: str) -> VOC:
        """Opens the VOCdevkit folder."""
        return VOC(root, split)
