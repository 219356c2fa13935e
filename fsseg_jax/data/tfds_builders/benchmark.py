"""The base of the benchmarks' TensorFlow Datasets builders, which store what a source reads.

Each folder beside this module is one data set, prepared by, for example,

    tfds build fsseg_jax/data/tfds_builders/pascal5i --manual_dir=VOCdevkit \\
        --file_format=array_record

or, without what TFDS's command line needs (TensorFlow, Apache Beam and mlcroissant), in Python:

    Builder().download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(manual_dir="VOCdevkit"),
    )
"""

import abc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fsseg_jax.data.source import Source

INSTANCES = "instances"


class Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the splits of a source, in the source's order.

    Images are stored as the source's files, byte by byte. Labels are stored as greyscale PNGs,
    because TensorFlow decodes a palette's indices to colours, and unknown instances as zeros. The
    metadata hold class names and folds.

    Attributes:
        SPLITS: the source's name of each split.
        VARIANTS: names of the source's lists of folds, if there are several.
        LABEL_TYPE: dtype of labels, uint16 if there are too many classes for uint8.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPLITS: dict[str, str]
    VARIANTS: tuple[str, ...] = ("",)
    LABEL_TYPE: type[np.unsignedinteger] = np.uint8

    @abc.abstractmethod
    def open(self, root: os.PathLike, split: str, variant: str) -> Source:
        """Opens the source in the folder that `--manual_dir` names."""

    def image(self, source: Source, index: int) -> str:
        """The file of an image, which is stored unchanged."""
        assert source.files is not None  # otherwise the builder overrides this method
        return source.files[index][0]

    def _info(self) -> tfds.core.DatasetInfo:
        def values(dtype: type[np.unsignedinteger]) -> tfds.features.Image:
            return tfds.features.Image(
                shape=(None, None, 1), dtype=dtype, encoding_format="png", use_colormap=True
            )

        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "segmentation": values(self.LABEL_TYPE),
            INSTANCES: values(np.uint8),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # keep the source's order
        )

    def _split_generators(self, downloads: tfds.download.DownloadManager) -> dict[str, Any]:
        root, first = downloads.manual_dir, self.VARIANTS[0]
        sources = {name: self.open(root, split, first) for name, split in self.SPLITS.items()}
        split = next(iter(self.SPLITS.values()))
        folds = {}
        for variant in self.VARIANTS:
            source = self.open(root, split, variant)
            folds[variant] = {"folds": source.folds, "validation": source.validation}
        self.info.metadata["fsseg_jax"] = {
            "classes": source.classes,
            "folds": folds,
            "instances": INSTANCES,
        }
        return {name: self._generate_examples(source) for name, source in sources.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, name in enumerate(source.ids):
            label = source.read(index).label  # validates the image too
            instances = source.instances(index)
            if instances is None:
                instances = np.zeros(label.shape, np.uint8)
            yield (
                index,
                {
                    "id": name,
                    "image": self.image(source, index),
                    "segmentation": Image.fromarray(label.astype(self.LABEL_TYPE)),
                    INSTANCES: Image.fromarray(instances),
                },
            )
