"""Any data set of TensorFlow Datasets (TFDS) that has images with segmentations.

Random access to ArrayRecord files needs no TensorFlow, which TFDS only needs for its command line
and to prepare some data sets. Only this module and the builders import TFDS.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from fsseg_jax.data.cache import cache_folder, fingerprint, kept_array, kept_table, stamp
from fsseg_jax.data.images import check_size, read_image, read_label
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import (
    LabelledImage,
    Source,
    class_numbers,
    count_classes,
    deal_folds,
)
from fsseg_jax.data.sources.tfds_folder import check_folder, own_metadata
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError

try:
    import array_record.python.array_record_data_source  # noqa: F401  without it TFDS fails later
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
except ModuleNotFoundError as error:
    raise UserError(
        f"data.name = tfds needs {error.name}, which is not installed: "
        "pip install 'fsseg_jax[tfds]'."
    ) from None

BUILDERS = pathlib.Path(__file__).parents[1] / "tfds_builders"
ID_FEATURES = ("id", "tfds_id", "image_id", "file_name", "filename", "image/filename", "name")


class Features(NamedTuple):
    """Names of the features that hold a record's parts."""

    image: str = "image"
    label: str = "segmentation"  # class ids, with one channel
    instances: str = ""  # instance numbers; empty for the data set's own choice, if any


FEATURES = Features()


class TFDS(Source):
    """One split of a TFDS data set that is prepared as ArrayRecord.

    Class ids are the values of the segmentation; 0 is background. Data sets prepared by
    `tfds_builders` define their classes and folds. Otherwise the classes are those that a
    `LabeledImage` names, or "class 1" up to the largest value in any split, and folds are groups
    of consecutive classes, as equal as possible. A text feature (one of `ID_FEATURES`) that differs
    in every record provides the images' names.

    Args:
        name: name of the data set, with config and version if there are several
            ("name/config:1.0.0").
        data_dir: folder where TFDS keeps its data sets; empty for its default.
        split: a split, or a part of one ("train[:80%]").
        folds: number of folds, unless the data set defines them. 1 holds out all classes, for
            tests only.
        variant: which of several lists of folds to use ("a", "b" or "canet" of coco20i); empty
            for the first.
        allow_code: whether TFDS may import the modules of features that are not its own, which runs
            code that the data set names.

    Raises:
        UserError: the data set is not prepared, or not as ArrayRecord; it names code; the split or
            a feature is missing; a file or record is broken, a label has an unknown class, or a
            label and its image differ in size.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike = "",
        split: str = "train",
        features: Features = FEATURES,
        folds: int = 1,
        variant: str = "",
        allow_code: bool = False,
    ) -> None:
        builder = _prepared(name, data_dir, allow_code)
        info = builder.info
        self._records = _Records(builder, split)
        self.name = "-".join(filter(None, (info.name, info.config_name)))
        defined = own_metadata(pathlib.Path(info.data_dir))  # by `tfds_builders`
        self._image, self._label = image, label = features[:2]
        self._instances = features.instances or defined.get("instances", "")
        _check_features(info, features._replace(instances=self._instances))
        self.fingerprint = self._records.fingerprint(image, label)
        self.sizes = self._records.sizes()
        self.ids = self._records.names = self._names()

        names = defined.get("classes") or _label_names(info.features[label])
        if names is None:  # which must be the same for all splits
            filled = [other for other, about in info.splits.items() if about.num_examples]
            largest = max(self._largest(_Records(builder, other)) for other in filled)
            names = [f"class {number}" for number in range(1, largest + 1) if number != IGNORE]
        if not names:
            raise UserError(f"{info.full_name}: {label!r} shows nothing but background.")
        self.classes = tuple(names)
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(self.ids)))

        if lists := defined.get("folds"):
            chosen = variant if len(lists) > 1 and variant else next(iter(lists))
            if chosen not in lists:
                raise UserError(
                    f"variant = {chosen!r}: the folds of {self.name} are {', '.join(lists)}."
                )
            self.name = "-".join(filter(None, (self.name, chosen)))
            self.folds = tuple(map(tuple, lists[chosen]["folds"]))
            self.validation = tuple(lists[chosen]["validation"])
        else:
            self.folds = deal_folds(class_numbers(len(names)), folds, info.full_name)
            self.nothing_held_out = folds == 0

    def read(self, index: int) -> LabelledImage:
        """Reads the image number `index`; raises UserError, naming the record, if it is broken."""
        record = self._records.read(index, self._image, self._label)
        label = record[self._label].values().astype(self.label_type, copy=False)
        return LabelledImage(read_image(record[self._image].file()), label)

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The instances of the image number `index`, up to number 254, or None if unknown."""
        if not self._instances:
            return None
        numbers = self._records.read(index, self._instances)[self._instances].values()
        if not numbers.any():  # all zeros are how builders store unknown instances
            return None
        return np.where(numbers <= IGNORE, numbers, 0).astype(np.uint8)

    def _count(self, row: int) -> np.ndarray:
        """Counts the pixels of each class in a label, and checks its size."""
        record = self._records.read(row, self._image, self._label)
        label, title = record[self._label].values(), record[self._label].title
        check_size(label, title, record[self._image].file())
        return count_classes(label, title, self)

    def _names(self) -> tuple[str, ...]:
        """The images' names, which are cached because finding them reads every record."""
        features = dict(self._records.info.features.items())
        texts = [name for name in ID_FEATURES if isinstance(features.get(name), tfds.features.Text)]
        if not texts:
            return self._records.names

        def name(row: int) -> str:
            return self._records.read(row, texts[0])[texts[0]].content.decode(errors="replace")

        rows = range(len(self._records.names))
        names = _kept(
            f"{self.name}-{self.fingerprint}-names",
            lambda: np.array(parallel_map(name, rows, f"names of {self.name}")),
        )
        unique = len(set(names.tolist())) == len(names) and all(names)
        return tuple(names.tolist()) if unique else self._records.names

    def _largest(self, records: "_Records") -> int:
        """The largest class id in these records, cached too."""

        def largest(row: int) -> int:
            label = records.read(row, self._label)[self._label].values()
            return label.max(where=label != IGNORE, initial=0)

        rows = range(len(records.names))
        kept = _kept(
            f"{self.name}-{records.fingerprint(self._label)}-largest",
            lambda: np.array(max(parallel_map(largest, rows, f"classes of {self.name}"))),
        )
        return int(kept)


class _Records:
    """The records of a split, of which only the requested features are decoded.

    Attributes:
        info: TFDS's description of the data set.
        names: names of the records, for errors; initially their splits and rows.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        info = self.info = builder.info
        try:
            count = info.splits[split].num_examples
        except (KeyError, ValueError):
            raise UserError(
                f"split = {split!r}: {info.full_name} has the splits {', '.join(info.splits)}, and "
                "parts of them such as train[:80%]."
            ) from None
        if count <= 0:
            raise UserError(f"split = {split!r} of {info.full_name} holds no images.")
        try:
            self._source = builder.as_data_source(
                split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
        except (NotImplementedError, ValueError):
            raise UserError(
                f"{info.data_dir} is prepared as {info.file_format.value}, which has no random "
                f"access: run `tfds convert_format --dataset_version_dir={info.data_dir} "
                f"--out_file_format=array_record`, or `tfds build {info.name} "
                "--file_format=array_record` with another data_dir."
            ) from None
        self._files = [os.fspath(path) for path in info.splits[split].filepaths]
        for path in self._files:
            if not os.path.isfile(path):
                raise UserError(f"{path} is missing: prepare {info.full_name} again.")
        size = sum(map(os.path.getsize, self._files))
        if count > size:
            raise UserError(
                f"{info.data_dir} says that split = {split!r} has {count} records, but its files "
                f"have {size} bytes: prepare it again."
            )
        self._split = split
        self.names = tuple(f"{split}_{row:06d}" for row in range(count))

    def fingerprint(self, *features: str) -> str:
        """Identifies the files and the features that are read."""
        described = ("dataset_info.json", "features.json", "metadata.json")
        files = [os.path.join(self.info.data_dir, name) for name in described]
        key = (fingerprint(files + self._files), self.info.full_name, self._split, *features)
        return hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]

    def sizes(self) -> str:
        """Identifies the files by their sizes."""
        return stamp(self._files).sizes

    def read(self, row: int, *names: str) -> dict[str, "_Value"]:
        """Reads these features of a record."""
        features = {name: self.info.features[name] for name in names}
        images = [name for name in names if isinstance(features[name], tfds.features.Image)]
        skip = {name: tfds.decode.SkipDecoding() for name in images}
        where = f"{self.info.full_name} {self._split}"
        try:
            record = tfds.features.FeaturesDict(features).deserialize_example_np(
                self._source[row], decoders=skip
            )
        except Exception as error:  # each of the libraries involved raises its own
            raise UserError(
                f"{where}, record {row} cannot be read ({_reason(error)}): prepare the data set "
                "again."
            ) from None
        titles = {name: f"{name!r} of {where}, {self.names[row]}" for name in names}
        return {name: _Value(record[name], titles[name]) for name in names}


class _Value(NamedTuple):
    """A feature of a record."""

    content: Any  # bytes of an image or a text, otherwise an array
    title: str

    def file(self) -> "_File":
        """The encoded image."""
        return _File(self.content, self.title)

    def values(self) -> Integer[np.ndarray, "height width"]:
        """Class ids or instance numbers."""
        if isinstance(self.content, bytes):
            return read_label(self.file(), ("P", "L", "I;16"))
        values = np.asarray(self.content)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high >= 2**16:
            raise UserError(f"{self.title} has values from {low} to {high}: labels are 0..65535.")
        return values.reshape(values.shape[:2]).astype(np.uint16)


class _File(io.BytesIO):
    """A file in memory, which errors name by its title."""

    def __init__(self, content: bytes, title: str) -> None:
        super().__init__(content)
        self._title = title

    def __repr__(self) -> str:
        return self._title


def _kept(name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Computes an array, or reads it from the cache of the class tables."""
    cache = cache_folder("class_tables") / f"{name}.npy"
    return kept_array(cache, "what the data set holds", compute)


def _label_names(feature: tfds.features.FeatureConnector) -> list[str] | None:
    """The class names that a feature declares, without background and ignored pixels."""
    if not isinstance(feature, tfds.features.LabeledImage) or not feature.num_classes:
        return None
    names = feature.names
    if names == [str(number) for number in range(len(names))]:  # only their number is known
        names = [f"class {number}" for number in range(len(names))]
    return [name for number, name in enumerate(names) if number not in (0, IGNORE)]


def _check_features(info: tfds.core.DatasetInfo, features: Features) -> None:
    """Raises UserError unless the features exist and are of the right kind."""
    for argument, name in features._asdict().items():
        if not name and argument == "instances":
            continue
        if name not in info.features:
            raise UserError(
                f"{argument} = {name!r}: {info.full_name} has no such feature, but "
                f"{', '.join(sorted(info.features))}."
            )
        feature = info.features[name]
        if argument == "image":
            fits = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
            kind = "an Image of uint8"
        else:
            fits = isinstance(feature, tfds.features.Image | tfds.features.Tensor)
            fits = fits and np.dtype(feature.np_dtype).kind in "uib"
            fits = fits and (len(feature.shape) == 2 or feature.shape[2:] == (1,))
            kind = "an Image or Tensor of integers with one channel"
        if not fits:
            raise UserError(
                f"{argument} = {name!r}: in {info.full_name} this is "
                f"{' '.join(repr(feature).split())}, but it must be {kind}."
            )


def _prepared(name: str, data_dir: str | os.PathLike, allow_code: bool) -> tfds.core.DatasetBuilder:
    folder = pathlib.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    try:
        # TFDS's `builder_from_files` in two halves, to check the folder between them.
        found = read_only_builder._find_builder_dir(name, data_dir=folder)
    except Exception:  # of files that it has not written
        found = None
    # The name of the default config is read from a file, too.
    if found is None or not pathlib.Path(os.path.abspath(found)).is_relative_to(folder.absolute()):
        depths = ("*/*", "*/*/*")  # name and version, with a config between
        searched = depths if os.path.isdir(folder) else ()
        others = [path for depth in searched for path in folder.glob(f"{depth}/features.json")]
        names = sorted({path.relative_to(folder).parts[0] for path in others})
        own = BUILDERS / name.split("/")[0].split(":")[0]
        source = f"{own} --manual_dir=FOLDER" if name and os.path.isdir(own) else name or "NAME"
        raise UserError(
            f"{name!r} is not prepared in {folder}, where there are {', '.join(names) or 'none'}: "
            f"run `tfds build {source} --data_dir={folder} --file_format=array_record`."
        )
    check_folder(pathlib.Path(found), allow_code)
    try:
        builder = read_only_builder.builder_from_directory(found)
        if not isinstance(builder.info.features, tfds.features.FeaturesDict):
            raise ValueError("its features have no names")
    except Exception as error:  # each of the libraries involved raises its own
        raise UserError(
            f"{found} cannot be read as a data set of TFDS ({_reason(error)}): prepare it again."
        ) from None
    return builder


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
