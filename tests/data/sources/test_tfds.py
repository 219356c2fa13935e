"""Data sets of TFDS are read truthfully, and our builders store what our sources read."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("array_record")
pytest.importorskip("importlib_resources")  # which TFDS 4.9 needs to build, but does not require
pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds
from helpers import message_of
from helpers_data import CATEGORIES, Drawn, rectangle, rows_of

from fsseg_jax.data.sources import tfds as tfds_source
from fsseg_jax.data.sources.fss1000 import FSS1000
from fsseg_jax.data.sources.tfds import TFDS, Features
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.errors import UserError

BUILDERS = pathlib.Path(tfds_source.__file__).parents[1] / "tfds_builders"
NO_TENSORFLOW = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = (
    lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find(name, *rest)
)
"""


def encoded(values, form="png"):
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def assert_same(ours, source):
    """The data set holds what the source reads."""
    assert ours.ids == source.ids
    assert ours.classes == source.classes
    assert ours.folds == source.folds
    assert ours.validation == source.validation
    assert rows_of(ours.table) == rows_of(source.table)
    assert ours.files is None
    for row in range(len(source)):
        for mine, theirs in zip(ours.read(row), source.read(row), strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        mine, theirs = ours.instances(row), source.instances(row)
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_array_equal(mine, theirs)


# ----------------------------------------------------------------------------- other data sets


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that prepares a data set of the records it is given, and returns its folder."""

    def build(records, features):
        def info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        class Spots(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")
            _info = info

            def _split_generators(self, downloads):
                middle = len(records) // 2
                return {"train": enumerate(records[:middle]), "test": enumerate(records[middle:])}

            def _generate_examples(self):
                pass

        folder = tmp_path_factory.mktemp("tfds")
        Spots(data_dir=folder).download_and_prepare(file_format="array_record")
        return folder

    return build


def picture(**options):
    return tfds.features.Image(shape=(None, None, 1), encoding_format="png", **options)


FEATURES = {"image": tfds.features.Image(), "mask": picture()}
MASK = Features(label="mask")


def make_records(labels, **more):
    """Records of random images with these labels."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": encoded(rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8), "jpeg"),
            "mask": encoded(label),
        }
        | {name: values[row] for name, values in more.items()}
        for row, label in enumerate(labels)
    ]


def make_labels(count=6, largest=5, seed=0):
    """Labels of several sizes with the values 0 to `largest` and 255; each shows `largest`."""
    rng = np.random.default_rng(seed)
    labels = []
    for _ in range(count):
        label = rng.integers(0, largest + 1, rng.integers(8, 20, 2)).astype(np.uint8)
        label[0, :2] = 255, largest
        labels.append(label)
    return labels


@pytest.fixture(scope="module")
def spots(build):
    """A data set that says nothing about its classes, and its labels and records."""
    labels = make_labels()
    records = make_records(labels)
    return build(records, FEATURES), labels, records


def test_any_data_set_is_read_and_counted(spots):
    folder, labels, records = spots
    for split, rows in (("train", range(3)), ("test", range(3, 6))):
        source = TFDS("spots", folder, split, features=MASK, folds=2)
        assert source.name == "spots"
        assert source.ids == tuple(f"{split}_00000{number}" for number in range(3))
        assert source.classes == ("class 1", "class 2", "class 3", "class 4", "class 5")
        assert source.folds == ((1, 2, 3), (4, 5))
        assert source.validation == ()
        expected = set()
        for number, row in enumerate(rows):
            image, label = source.read(number)
            with Image.open(io.BytesIO(records[row]["image"])) as file:
                np.testing.assert_array_equal(image, np.asarray(file))
            np.testing.assert_array_equal(label, labels[row])
            assert label.dtype == np.uint8
            assert source.instances(number) is None
            counts = [(c, int((labels[row] == c).sum())) for c in range(1, 6)]
            expected |= {(number, c, pixels) for c, pixels in counts if pixels}
        assert rows_of(source.table) == expected


def test_all_splits_have_the_same_classes(build):
    labels = [np.full((8, 9), value, np.uint8) for value in (1, 2, 6, 255)]
    folder = build(make_records(labels), FEATURES)
    for split in ("train", "test", "train[:1]"):
        source = TFDS("spots", folder, split, features=MASK, folds=2)
        assert len(source.classes) == 6
        assert source.folds == ((1, 2, 3), (4, 5, 6))


def test_parts_of_a_split_are_splits(spots):
    folder, labels, _ = spots
    source = TFDS("spots:1.2.0", folder, "train[1:]", features=MASK)
    assert len(source) == 2
    np.testing.assert_array_equal(source.read(0).label, labels[1])
    assert rows_of(source.table) != rows_of(TFDS("spots", folder, "train", features=MASK).table)


def test_records_are_counted_once_and_images_are_not_decoded(spots, monkeypatch):
    folder, _, _ = spots
    reads = []
    records = tfds_source._Records
    spy = records.read
    monkeypatch.setattr(records, "read", lambda *names: reads.append(names) or spy(*names))
    monkeypatch.setattr(tfds_source, "read_image", None)  # calling it would fail
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    first = TFDS("spots", folder, "test", features=MASK)
    assert reads
    reads.clear()
    second = TFDS("spots", folder, "test", features=MASK)
    assert not reads
    assert second.ids == first.ids
    assert second.classes == first.classes
    assert rows_of(second.table) == rows_of(first.table)


def test_changed_files_are_counted_anew(build):
    labels = make_labels()
    folder = build(make_records(labels), FEATURES)
    before = TFDS("spots", folder, features=MASK)
    shard = next(folder.glob("spots/*/*train.array_record*"))
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert TFDS("spots", folder, features=MASK).fingerprint != before.fingerprint


@pytest.mark.parametrize("feature", ["id", "file_name"])
@pytest.mark.parametrize("unique", [True, False])
def test_a_text_feature_names_images_if_it_tells_them_apart(build, feature, unique):
    names = [f"cat {row if unique else row % 2}" for row in range(6)]
    records = make_records(make_labels(), **{feature: names})
    folder = build(records, FEATURES | {feature: tfds.features.Text()})
    own = tuple(f"train_00000{row}" for row in range(3))
    for _ in range(2):  # the second time from the cache
        ids = TFDS("spots", folder, features=MASK).ids
        assert ids == (tuple(names[:3]) if unique else own)


def test_a_labeled_image_names_the_classes(build):
    names = ["background", "cat", "dog", "cow"]
    features = FEATURES | {"mask": tfds.features.LabeledImage(labels=names)}
    folder = build(make_records(make_labels(largest=2)), features)
    source = TFDS("spots", folder, features=MASK, folds=3)
    assert source.classes == ("cat", "dog", "cow")  # cow is in no label
    assert source.folds == ((1,), (2,), (3,))


@pytest.mark.parametrize("classes", [254, 300])
def test_classes_beyond_255_skip_the_label_of_ignored_pixels(build, classes):
    label = np.array([[0, 1, 254], [255, 255, 2]], np.uint16)
    if classes > 254:
        label[0, 2] = classes + 1  # the last class: 255 is none
    features = FEATURES | {"mask": picture(dtype=np.uint16)}
    folder = build(make_records([label] * 2), features)
    source = TFDS("spots", folder, features=MASK)
    assert len(source.classes) == classes
    assert 255 not in source.class_names
    np.testing.assert_array_equal(source.read(0).label, label)
    assert source.read(0).label.dtype == (np.uint16 if classes > 254 else np.uint8)
    assert rows_of(source.table) == {
        (0, 1, 1),
        (0, 2, 1),
        (0, label.max(where=label != 255, initial=0), 1),
    }


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1)])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_labels_may_be_tensors(build, shape, dtype):
    labels = [np.random.default_rng(seed).integers(0, 2, (8, 9)).astype(dtype) for seed in (0, 1)]
    records = make_records([label.astype(np.uint8) for label in labels])
    for record, label in zip(records, labels, strict=True):
        record["mask"] = label.reshape(shape)
    folder = build(records, FEATURES | {"mask": tfds.features.Tensor(shape=shape, dtype=dtype)})
    source = TFDS("spots", folder, features=MASK)
    np.testing.assert_array_equal(source.read(0).label, labels[0])
    assert rows_of(source.table) == {(0, 1, int(labels[0].sum()))}


def test_instances_are_read_from_their_feature(build):
    labels = make_labels(2)
    numbers = [np.full(label.shape, 300, np.uint16) for label in labels]
    for number in numbers:
        number[0, :3] = 0, 7, 255
    records = make_records(labels, objects=[encoded(number) for number in numbers])
    folder = build(records, FEATURES | {"objects": picture(dtype=np.uint16)})
    read = TFDS("spots", folder, features=MASK._replace(instances="objects")).instances(0)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.where(numbers[0] == 300, 0, numbers[0]))
    assert TFDS("spots", folder, features=MASK).instances(0) is None


# ----------------------------------------------------------------------------- builders


@pytest.fixture(scope="module")
def voc_root(make_voc):
    root = make_voc(train=5, val=3, objects=True)
    (root / "SegmentationObject" / "2007_000001.png").unlink()
    lists = root / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("2007_000003\n2007_000001\n2007_000002\n")
    return root


@pytest.fixture(scope="module")
def pascal(voc_root, tmp_path_factory):
    """PASCAL-5i as `tfds build` prepares it; the command itself needs Apache Beam too."""
    from tensorflow_datasets.scripts.cli import build, cli_utils

    folder = tmp_path_factory.mktemp("pascal")
    options = [f"--data_dir={folder}", f"--manual_dir={voc_root}", "--file_format=array_record"]
    parse = cli_utils.make_flags_parser(build.Args, description="build")
    parse(["build", str(BUILDERS / "pascal5i"), *options]).execute()
    return folder


@pytest.mark.parametrize(("split", "own"), [("train", "trainaug"), ("validation", "val")])
def test_pascal5i_is_the_voc_source(pascal, voc_root, split, own):
    ours = TFDS("pascal5i", pascal, split)
    assert ours.name == "pascal5i"
    assert_same(ours, VOC(voc_root, own))


def test_pascal5i_stores_the_very_images_and_grey_labels(pascal, voc_root):
    records = tfds.builder("pascal5i", data_dir=pascal).as_data_source(
        "train", decoders={name: tfds.decode.SkipDecoding() for name in ("image", "segmentation")}
    )
    for record, (image, _) in zip(records, VOC(voc_root, "trainaug").files, strict=True):
        assert record["image"] == pathlib.Path(image).read_bytes()
        with Image.open(io.BytesIO(record["segmentation"])) as label:
            assert (label.format, label.mode) == ("PNG", "L")


def test_reading_needs_no_tensorflow(pascal, voc_root):
    program = f"""{NO_TENSORFLOW}
from fsseg_jax.data.sources.tfds import TFDS
source = TFDS("pascal5i", {str(pascal)!r}, "train[1:]")
print(source.ids[0], int(source.read(0).label.astype(int).sum()), "tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    expected = VOC(voc_root, "trainaug").read(1).label.astype(int).sum()
    assert done.stdout.split() == ["2007_000001", str(expected), "False"]


def prepare(builder, folder, root):
    config = tfds.download.DownloadConfig(manual_dir=root)
    builder(data_dir=folder).download_and_prepare(
        file_format="array_record", download_config=config
    )


def test_fss1000_is_its_source(tmp_path):
    from fsseg_jax.data.tfds_builders.fss1000.fss1000_dataset_builder import Builder

    rng, root = np.random.default_rng(0), tmp_path / "fewshot_data"
    root.mkdir()
    lists = {"train": ("ant", "dog"), "val": ("bee",), "test": ("cat", "elk")}
    for kind, names in lists.items():
        (root / f"{kind}.txt").write_text("\n".join(names))
        for name in names:
            (root / name).mkdir()
            for number in range(1, 4):
                shape = rng.integers(8, 16, 2)
                pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.jpg")
                mask = rng.integers(0, 2, shape, dtype=np.uint8) * 255
                Image.fromarray(mask).save(root / name / f"{number}.png")
    prepare(Builder, tmp_path / "out", root)
    for split in ("train", "test"):
        ours = TFDS("fss1000", tmp_path / "out", split)
        assert_same(ours, FSS1000(root, split))
        assert ours.validation == (2,)


def test_coco20i_is_its_source_with_all_lists_of_folds(tmp_path):
    pytest.importorskip("pycocotools")
    from fsseg_jax.data.sources.coco import COCO
    from fsseg_jax.data.tfds_builders.coco20i.coco20i_dataset_builder import Builder

    rng = np.random.default_rng(0)
    for split, count in (("train2014", 4), ("val2014", 3)):
        folder = Drawn(tmp_path, split, rng)
        for image_id in range(1, count + 1):
            size = tuple(rng.integers(20, 40, 2).tolist())
            folder.add_image(image_id, size)
            folder.add_object(image_id, CATEGORIES[image_id], rectangle(size, 3, 9, 2, 12))
            folder.add_object(image_id, CATEGORIES[0], rectangle(size, 0, 5, 0, 5), crowd=True)
        folder.write()
    prepare(Builder, tmp_path / "out", tmp_path)
    names = {"train": "train", "validation": "val"}
    for split, own in names.items():
        for variant in ("a", "b", "canet"):
            ours = TFDS("coco20i", tmp_path / "out", split, variant=variant)
            assert_same(ours, COCO(tmp_path, own, variant))
            assert ours.name == f"coco20i-{variant}"
    assert TFDS("coco20i", tmp_path / "out").folds == COCO(tmp_path, "train", "a").folds
    message = message_of(TFDS, "coco20i", tmp_path / "out", variant="c")
    assert "'c'" in message
    assert "a, b, canet" in message


# ----------------------------------------------------------------------------- faults


def test_data_sets_that_are_not_prepared_are_told_with_the_command(spots, tmp_path):
    folder, _, _ = spots
    for name in ("mnist", "spots:9.9.9", "spots/red", "a/b/c/d", "no such name", ""):
        message = message_of(TFDS, name, folder)
        assert repr(name) in message
        assert "there are spots" in message
        assert (
            f"tfds build {name or 'NAME'} --data_dir={folder} --file_format=array_record" in message
        )
    message = message_of(TFDS, "pascal5i", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert f"tfds build {BUILDERS / 'pascal5i'} --manual_dir=FOLDER" in message


def test_tfrecord_is_told_with_the_command(build):
    folder = build(make_records(make_labels()), FEATURES)
    described = folder / "spots" / "1.2.0" / "dataset_info.json"
    described.write_text(described.read_text().replace("array_record", "tfrecord"))
    message = message_of(TFDS, "spots", folder, features=MASK)
    assert "is prepared as tfrecord" in message
    assert f"tfds convert_format --dataset_version_dir={described.parent}" in message
    assert "tfds build spots --file_format=array_record" in message


@pytest.mark.parametrize("split", ["val", "", "train[:x]"])
def test_unknown_splits_are_told(spots, split):
    message = message_of(TFDS, "spots", spots[0], split, features=MASK)
    assert f"split = {split!r}" in message
    assert "train, test" in message


def test_empty_splits_are_told(spots):
    assert "no images" in message_of(TFDS, "spots", spots[0], "train[:0]", features=MASK)


def test_unknown_features_are_told(spots):
    for argument in ("image", "label", "instances"):
        features = MASK._replace(**{argument: "depth"})
        message = message_of(TFDS, "spots", spots[0], features=features)
        assert f"{argument} = 'depth'" in message
        assert "image, mask" in message


@pytest.mark.parametrize(
    ("argument", "feature"),
    [
        ("image", tfds.features.Tensor(shape=(8, 9, 3), dtype=np.uint8)),
        ("image", picture(dtype=np.float32)),
        ("label", tfds.features.Image()),
        ("label", picture(dtype=np.float32)),
        ("label", tfds.features.Tensor(shape=(8, 9), dtype=np.float32)),
        ("label", tfds.features.Tensor(shape=(8,), dtype=np.uint8)),
        ("label", tfds.features.Sequence({"mask": picture()})),
        ("instances", tfds.features.ClassLabel(num_classes=3)),
        ("instances", tfds.features.Text()),
    ],
)
def test_features_of_another_kind_are_told(argument, feature):
    features = tfds.features.FeaturesDict(FEATURES | {"odd": feature})
    info = type("Info", (), {"features": features, "full_name": "spots/1.2.0"})
    message = message_of(tfds_source._check_features, info, MASK._replace(**{argument: "odd"}))
    assert message.startswith(f"{argument} = 'odd': in spots/1.2.0 this is")


@pytest.mark.parametrize("folds", [0, 6])
def test_too_many_folds_are_told(spots, folds):
    assert "choose 1..5" in message_of(TFDS, "spots", spots[0], features=MASK, folds=folds)


def test_labels_without_classes_are_told(build):
    label = np.array([[0, 255]], np.uint8)
    folder = build(make_records([label] * 2), FEATURES)
    assert "nothing but background" in message_of(TFDS, "spots", folder, features=MASK)


def test_labels_above_the_classes_are_told(build):
    features = FEATURES | {"mask": tfds.features.LabeledImage(labels=["background", "cat"])}
    folder = build(make_records(make_labels(largest=7)), features)
    message = message_of(TFDS, "spots", folder, features=MASK)
    assert "'mask' of spots/1.2.0 train, train_000000" in message
    assert "label 7" in message


def test_labels_below_zero_are_told(build):
    records = make_records(make_labels(2))
    for record in records:
        record["mask"] = np.full((8, 9), -1, np.int32)
    features = FEATURES | {"mask": tfds.features.Tensor(shape=(8, 9), dtype=np.int32)}
    assert "values from -1 to 0" in message_of(
        TFDS, "spots", build(records, features), features=MASK
    )


def test_sizes_that_differ_are_told(build):
    records = make_records([np.ones((8, 9), np.uint8)] * 2)
    records[0]["mask"] = encoded(np.ones((8, 10), np.uint8))
    message = message_of(TFDS, "spots", build(records, FEATURES), features=MASK)
    assert "'mask' of spots/1.2.0 train, train_000000 is 10 x 8" in message
    assert "'image' of spots/1.2.0 train, train_000000 is 9 x 8" in message


def test_labels_in_colour_are_told(build):
    records = make_records([np.ones((8, 9), np.uint8)] * 2)
    records[0]["mask"] = encoded(np.ones((8, 9, 3), np.uint8))
    assert "mode RGB" in message_of(TFDS, "spots", build(records, FEATURES), features=MASK)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_broken_files_are_told(build, part, dtype):
    label = np.random.default_rng(0).integers(1, 9, (40, 40)).astype(dtype)
    records = make_records([label] * 2)
    whole = dict(records[0])
    records[0]["image"] = whole["image"][: int(part * len(whole["image"]))]
    records[1]["mask"] = whole["mask"][: int(part * len(whole["mask"]))]
    mask = tfds.features.LabeledImage(
        labels=[f"class {number}" for number in range(9)], dtype=dtype
    )
    folder = build(records, FEATURES | {"mask": mask})
    message = message_of(TFDS, "spots", folder, "test", features=MASK)
    assert "'mask' of spots/1.2.0 test, test_000000 cannot be read" in message
    assert "0x" not in message
    with pytest.raises(UserError, match=r"'image' of spots/1\.2\.0 train, train_000000 cannot be"):
        TFDS("spots", folder, "train", features=MASK).read(0)


def test_missing_and_truncated_shards_are_told(build):
    folder = build(make_records(make_labels()), FEATURES)
    shard = next(folder.glob("spots/*/*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    message = message_of(TFDS, "spots", folder, features=MASK)
    assert "spots/1.2.0 train, record 0 cannot be read" in message
    shard.unlink()
    assert f"{shard} is missing" in message_of(TFDS, "spots", folder, features=MASK)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_missing_packages_are_told(package):
    program = f"""{NO_TENSORFLOW.replace('"tensorflow"', repr(package))}
from fsseg_jax.errors import UserError
try:
    import fsseg_jax.data.sources.tfds
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"data.name = tfds needs {package}, which is not installed: "
        "pip install 'fsseg_jax[tfds]'.\n"
    )
