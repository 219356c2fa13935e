"""Any data set of TensorFlow Datasets (TFDS) that has photographs with segmentations.

Records are read at random from ArrayRecord files, without TensorFlow: TFDS needs it for its
command line and to prepare some data sets, not to read them. Only this module and the builders
beside it import TFDS.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from fsseg_jax.data.cache import cache_folder, fingerprint, kept_table
from fsseg_jax.data.images import check_size, read_image, read_label
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import LabelledImage, Source, class_numbers, count_classes
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError
from fsseg_jax.files import keep

try:
    import array_record.python.array_record_data_source  # noqa: F401  or TFDS fails much later
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
except ModuleNotFoundError as error:
    raise UserError(
        f"data.name = tfds needs {error.name}, which is not installed: "
        "pip install 'fsseg_jax[tfds]'."
    ) from None

BUILDERS = pathlib.Path(__file__).parents[1] / "tfds_builders"
ID_FEATURES = ("id", "tfds_id", "image_id", "file_name", "filename", "image/filename", "name")


class TFDS(Source):
    """One split of a TFDS data set that is prepared as ArrayRecord.

    Class ids are the values of the segmentation; 0 is background. Data sets that the builders in
    `tfds_builders` prepared bring their classes and folds. Otherwise the classes are those that a
    `LabeledImage` names, or "class 1" up to the largest value in any split, and are dealt, in
    their order, into `folds` groups as equal as possible. A text feature (one of `ID_FEATURES`)
    that differs in every record gives the photographs' names.

    Args:
        name: the data set's, with config and version where there are several
            ("name/config:1.0.0").
        data_dir: where TFDS keeps its data sets; empty for its own default.
        split: a split, or a part of one ("train[:80%]").
        image: the feature of the photographs.
        label: the feature of the class ids, with one channel.
        folds: how many, of a data set that brings none. 1 holds out all classes, for tests alone.
        instances: the feature of the objects' numbers; empty for the one that the data set
            brings, or none.
        variant: which of the data set's lists of folds, where it brings several ("a", "b" or
            "canet" of coco20i); empty for the first.

    Raises:
        UserError: the data set is not prepared, or not as ArrayRecord; it lacks the split or a
            feature; a record is broken, a label exceeds the classes, or a label and its
            photograph differ in size.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | os.PathLike = "",
        split: str = "train",
        image: str = "image",
        label: str = "segmentation",
        folds: int = 1,
        instances: str = "",
        variant: str = "",
    ) -> None:
        info = _prepared(name, data_dir).info
        self._records = _Records(name, data_dir, split)
        self.name = "-".join(filter(None, (info.name, info.config_name)))
        self._image, self._label = image, label
        metadata = dict(info.metadata.items()) if isinstance(info.metadata, dict) else {}
        brought = metadata.get("fsseg_jax", {})  # by the builders in `tfds_builders`
        self._instances = instances or brought.get("instances", "")
        _check_features(info, {"image": image, "label": label, "instances": self._instances})
        self.fingerprint = self._records.fingerprint(image, label)
        self.ids = self._records.names = self._names()

        names = brought.get("classes") or _label_names(info.features[label])
        if names is None:  # all splits must agree on them
            filled = [other for other, about in info.splits.items() if about.num_examples]
            largest = max(self._largest(_Records(name, data_dir, other)) for other in filled)
            names = [f"class {number}" for number in range(1, largest + 1) if number != IGNORE]
        if not names:
            raise UserError(f"{info.full_name}: {label!r} shows nothing but background.")
        self.classes = tuple(names)
        numbers = class_numbers(len(names))
        self._dtype = np.min_scalar_type(numbers[-1])
        self.table = kept_table(self.name, self.fingerprint, self._count, range(len(self.ids)))

        if lists := brought.get("folds"):
            chosen = variant if len(lists) > 1 and variant else next(iter(lists))
            if chosen not in lists:
                raise UserError(
                    f"variant = {chosen!r}: the folds of {self.name} are {', '.join(lists)}."
                )
            self.name = "-".join(filter(None, (self.name, chosen)))
            self.folds = tuple(map(tuple, lists[chosen]["folds"]))
            self.validation = tuple(lists[chosen]["validation"])
        elif 1 <= folds <= len(names):
            self.folds = tuple(tuple(fold.tolist()) for fold in np.array_split(numbers, folds))
        else:
            raise UserError(
                f"folds = {folds}: {info.full_name} has {len(names)} classes, of which each fold "
                f"holds out at least one: choose 1..{len(names)}."
            )

    def read(self, index: int) -> LabelledImage:
        """The photograph number `index`; raises UserError, naming the record, if it is broken."""
        record = self._records.read(index, self._image, self._label)
        label = record[self._label].values().astype(self._dtype, copy=False)
        return LabelledImage(read_image(record[self._image].file()), label)

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"] | None:
        """The objects of the photograph number `index`, where they are known; those after the
        254th are none."""
        if not self._instances:
            return None
        numbers = self._records.read(index, self._instances)[self._instances].values()
        if not numbers.any():  # how TFDS has to store that they are not known
            return None
        return np.where(numbers <= IGNORE, numbers, 0).astype(np.uint8)

    def _count(self, row: int) -> np.ndarray:
        """Pixels of each class in one label, checked against its photograph."""
        record = self._records.read(row, self._image, self._label)
        label, title = record[self._label].values(), record[self._label].title
        check_size(label, title, record[self._image].file())
        return count_classes(label, title, self)

    def _names(self) -> tuple[str, ...]:
        """The photographs' names; they are kept, for they take reading every record."""
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
        """The largest class id of these records, kept too."""

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
    """The records of a split, decoded as far as they are asked for.

    Attributes:
        info: of the data set.
        names: of the records, for errors; by split and row to begin with.
    """

    def __init__(self, name: str, data_dir: str | os.PathLike, split: str) -> None:
        builder = _prepared(name, data_dir)
        info = self.info = builder.info
        try:
            count = info.splits[split].num_examples
        except (KeyError, ValueError):
            raise UserError(
                f"split = {split!r}: {info.full_name} has the splits {', '.join(info.splits)}, and "
                "parts of them (as train[:80%])."
            ) from None
        if not count:
            raise UserError(f"split = {split!r} of {info.full_name} holds no photographs.")
        try:
            self._source = builder.as_data_source(
                split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
        except (NotImplementedError, ValueError):
            raise UserError(
                f"{info.data_dir} is prepared as {info.file_format.value}, which cannot be read at "
                f"random: run `tfds convert_format --dataset_version_dir={info.data_dir} "
                f"--out_file_format=array_record`, or `tfds build {name} "
                "--file_format=array_record` with another data_dir."
            ) from None
        self._files = [os.fspath(path) for path in info.splits[split].filepaths]
        for path in self._files:
            if not os.path.isfile(path):
                raise UserError(f"{path} is missing: prepare {info.full_name} again.")
        self._split = split
        self.names = tuple(f"{split}_{row:06d}" for row in range(count))

    def fingerprint(self, *features: str) -> str:
        """Changes with the files, and with what is read of them."""
        described = ("dataset_info.json", "features.json", "metadata.json")
        files = [os.path.join(self.info.data_dir, name) for name in described]
        key = (fingerprint(files + self._files), self.info.full_name, self._split, *features)
        return hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]

    def read(self, row: int, *names: str) -> dict[str, "_Value"]:
        """These features of one record."""
        features = {name: self.info.features[name] for name in names}
        images = [name for name in names if isinstance(features[name], tfds.features.Image)]
        skip = {name: tfds.decode.SkipDecoding() for name in images}
        where = f"{self.info.full_name} {self._split}"
        try:
            record = tfds.features.FeaturesDict(features).deserialize_example_np(
                self._source[row], decoders=skip
            )
        except Exception as error:  # each library that takes part has its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{where}, record {row} cannot be read ({reason}): prepare the data set again."
            ) from None
        titles = {name: f"{name!r} of {where}, {self.names[row]}" for name in names}
        return {name: _Value(record[name], titles[name]) for name in names}


class _Value(NamedTuple):
    """A feature of one record."""

    content: Any  # of an image or text, as bytes; otherwise an array
    title: str

    def file(self) -> "_File":
        """An image, still encoded."""
        return _File(self.content, self.title)

    def values(self) -> Integer[np.ndarray, "height width"]:
        """Class ids or object numbers."""
        if isinstance(self.content, bytes):
            return _read_values(self.file())
        values = np.asarray(self.content)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high >= 2**16:
            raise UserError(f"{self.title} has values from {low} to {high}: labels are 0..65535.")
        return values.reshape(values.shape[:2]).astype(np.uint16)


class _File(io.BytesIO):
    """A file in memory, which errors call by its title."""

    def __init__(self, content: bytes, title: str) -> None:
        super().__init__(content)
        self._title = title

    def __repr__(self) -> str:
        return self._title


def _read_values(file: _File) -> Integer[np.ndarray, "height width"]:
    """Class ids or object numbers: `read_label` for 16 bits too."""
    try:
        with Image.open(file) as picture:
            if picture.mode == "I;16":
                return np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file} cannot be read ({error}): prepare it again.") from None
    file.seek(0)
    return read_label(file)


def _kept(name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is kept beside the class tables."""
    cache = cache_folder("class_tables") / f"{name}.npy"
    if cache.is_file():
        return np.load(cache)
    array = compute()
    keep(cache, "what the data set holds", lambda file: np.save(file, array))
    return array


def _label_names(feature: tfds.features.FeatureConnector) -> list[str] | None:
    """The classes that a feature declares, without background and the label of ignored pixels."""
    if not isinstance(feature, tfds.features.LabeledImage) or not feature.num_classes:
        return None
    names = feature.names
    if names == [str(number) for number in range(len(names))]:  # it knows only how many
        names = [f"class {number}" for number in range(len(names))]
    return [name for number, name in enumerate(names) if number not in (0, IGNORE)]


def _check_features(info: tfds.core.DatasetInfo, names: dict[str, str]) -> None:
    """Raises UserError unless the features are there and of the right kind."""
    for argument, name in names.items():
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


def _prepared(name: str, data_dir: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """What TFDS knows of a data set that is prepared."""
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    try:
        return read_only_builder.builder_from_files(name, data_dir=folder)
    except (ValueError, FileNotFoundError):
        depths = ("*/*", "*/*/*")  # name and version, with a config between
        found = [path for depth in depths for path in folder.glob(f"{depth}/features.json")]
        names = sorted({path.relative_to(folder).parts[0] for path in found})
        own = BUILDERS / name.split("/")[0].split(":")[0]
        source = f"{own} --manual_dir=FOLDER" if name and own.is_dir() else name or "NAME"
        raise UserError(
            f"{name!r} is not prepared in {folder}, where there are {', '.join(names) or 'none'}: "
            f"run `tfds build {source} --data_dir={folder} --file_format=array_record`."
        ) from None
