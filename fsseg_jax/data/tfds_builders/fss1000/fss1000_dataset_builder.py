"""FSS-1000 for TensorFlow Datasets."""

import os

import numpy as np

from fsseg_jax.data.sources.fss1000 import FSS1000
from fsseg_jax.data.tfds_builders.benchmark import Benchmark


class Builder(Benchmark):
    """FSS-1000: a thousand classes of ten images each; the test classes are held out."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "FSS-1000's folder, with the list of test classes."
    SPLITS = {"train": "train", "test": "test"}  # noqa: RUF012
    LABEL_TYPE = np.uint16

    def open(self, root: os.PathLike, split: str, variant: str) -> FSS1000:
        """Opens the FSS-1000 folder."""
        return FSS1000(root, split)

    def image(self, source: FSS1000, index: int) -> str:
        """The file of an image."""
        return str(source.pairs[index][0])
