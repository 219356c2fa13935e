"""Data sets of TFDS are read correctly, and errors name their faults."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("array_record")
pytest.importorskip("importlib_resources")  # which TFDS 4.9 needs to build, but does not require
pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds
from fuzz import EXAMPLES
from helpers import calls_of, message_of, pixels_of
from helpers_data import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg_jax.data.sources import tfds as tfds_source
from fsseg_jax.data.sources.tfds import BUILDERS, TFDS, Features
from fsseg_jax.errors import UserError


def encoded(values, form="png"):
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


# ----------------------------------------------------------------------------- other data sets


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that prepares a data set of given records, and returns its folder."""

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


def spots_of(folder, split="train", features=MASK, folds=1):
    return TFDS("spots", folder, split, features, folds)


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
    """A data set that does not declare its classes, and its labels and records."""
    labels = make_labels()
    records = make_records(labels)
    return build(records, FEATURES), labels, records


def test_any_data_set_is_read_and_counted(spots):
    folder, labels, records = spots
    for split, rows in (("train", range(3)), ("test", range(3, 6))):
        source = spots_of(folder, split, folds=2)
        assert source.name == "spots"
        assert source.ids == tuple(f"{split}_00000{number}" for number in range(3))
        assert source.classes == ("class 1", "class 2", "class 3", "class 4", "class 5")
        assert source.folds == ((1, 2, 3), (4, 5))
        assert source.validation == ()
        expected = set()
        for number, row in enumerate(rows):
            image, label = source.read(number)
            np.testing.assert_array_equal(image, pixels_of(io.BytesIO(records[row]["image"])))
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
        source = spots_of(folder, split, folds=2)
        assert len(source.classes) == 6
        assert source.folds == ((1, 2, 3), (4, 5, 6))


def test_parts_of_a_split_are_splits(spots):
    folder, labels, _ = spots
    source = TFDS("spots:1.2.0", folder, "train[1:]", MASK)
    assert len(source) == 2
    np.testing.assert_array_equal(source.read(0).label, labels[1])
    assert rows_of(source.table) != rows_of(spots_of(folder, "train").table)


def test_records_are_counted_once_and_images_are_not_decoded(spots, monkeypatch):
    folder, _, _ = spots
    reads = calls_of(monkeypatch, tfds_source._Records, "read")
    monkeypatch.setattr(tfds_source, "read_image", None)  # calling it would fail
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    first = spots_of(folder, "test")
    assert reads
    reads.clear()
    second = spots_of(folder, "test")
    assert not reads
    assert second.ids == first.ids
    assert second.classes == first.classes
    assert rows_of(second.table) == rows_of(first.table)


def test_changed_files_are_counted_anew(build):
    labels = make_labels()
    folder = build(make_records(labels), FEATURES)
    before = spots_of(folder)
    shard = next(folder.glob("spots/*/*train.array_record*"))
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert spots_of(folder).fingerprint != before.fingerprint


@pytest.mark.parametrize("feature", ["id", "file_name"])
@pytest.mark.parametrize("unique", [True, False])
def test_a_text_feature_names_images_if_it_tells_them_apart(build, feature, unique):
    names = [f"cat {row if unique else row % 2}" for row in range(6)]
    records = make_records(make_labels(), **{feature: names})
    folder = build(records, FEATURES | {feature: tfds.features.Text()})
    own = tuple(f"train_00000{row}" for row in range(3))
    for _ in range(2):  # the second time from the cache
        ids = spots_of(folder).ids
        assert ids == (tuple(names[:3]) if unique else own)


def test_a_labeled_image_names_the_classes(build):
    names = ["background", "cat", "dog", "cow"]
    features = FEATURES | {"mask": tfds.features.LabeledImage(labels=names)}
    folder = build(make_records(make_labels(largest=2)), features)
    source = spots_of(folder, folds=3)
    assert source.classes == ("cat", "dog", "cow")  # cow is in no label
    assert source.folds == ((1,), (2,), (3,))


@pytest.mark.parametrize("classes", [254, 300])
def test_classes_beyond_255_skip_the_label_of_ignored_pixels(build, classes):
    label = np.array([[0, 1, 254], [255, 255, 2]], np.uint16)
    if classes > 254:
        label[0, 2] = classes + 1  # the last class: 255 is none
    features = FEATURES | {"mask": picture(dtype=np.uint16)}
    folder = build(make_records([label] * 2), features)
    source = spots_of(folder)
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
    source = spots_of(folder)
    np.testing.assert_array_equal(source.read(0).label, labels[0])
    assert rows_of(source.table) == {(0, 1, int(labels[0].sum()))}


def test_instances_are_read_from_their_feature(build):
    labels = make_labels(2)
    numbers = [np.full(label.shape, 300, np.uint16) for label in labels]
    for number in numbers:
        number[0, :3] = 0, 7, 255
    records = make_records(labels, objects=[encoded(number) for number in numbers])
    folder = build(records, FEATURES | {"objects": picture(dtype=np.uint16)})
    read = spots_of(folder, features=MASK._replace(instances="objects")).instances(0)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.where(numbers[0] == 300, 0, numbers[0]))
    assert spots_of(folder).instances(0) is None


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
    message = message_of(spots_of, folder)
    assert "is prepared as tfrecord" in message
    assert f"tfds convert_format --dataset_version_dir={described.parent}" in message
    assert "tfds build spots --file_format=array_record" in message


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        *((split, "train, test") for split in ("val", "", "train[:x]")),
        ("train[:0]", "no images"),
    ],
)
def test_splits_without_images_are_told(spots, split, expected):
    message = message_of(spots_of, spots[0], split)
    assert f"split = {split!r}" in message
    assert expected in message


def test_unknown_features_are_told(spots):
    for argument in ("image", "label", "instances"):
        features = MASK._replace(**{argument: "depth"})
        message = message_of(spots_of, spots[0], features=features)
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


@pytest.mark.parametrize("folds", [-1, 6])
def test_too_many_folds_are_told(spots, folds):
    assert "choose" in message_of(spots_of, spots[0], folds=folds)


def test_no_folds_hold_out_nothing(spots):
    source = spots_of(spots[0], folds=0)
    assert source.nothing_held_out
    assert source.folds == ((1, 2, 3, 4, 5),)


ONE_CLASS = tfds.features.LabeledImage(labels=["background", "cat"])
SIGNED = tfds.features.Tensor(shape=(8, 9), dtype=np.int32)
FIRST = "of spots/1.2.0 train, train_000000"
SIZES = f"'mask' {FIRST} is 10 x 8 pixels, but its image 'image' {FIRST} is 9 x 8"


@pytest.mark.parametrize(
    ("mask", "feature", "expected"),
    [
        (encoded(np.full((8, 9), 255, np.uint8)), picture(), "nothing but background"),
        (encoded(np.full((8, 9), 7, np.uint8)), ONE_CLASS, f"'mask' {FIRST} has the label 7"),
        (np.full((8, 9), -1, np.int32), SIGNED, "values from -1 to 0"),
        (encoded(np.ones((8, 10), np.uint8)), picture(), SIZES),
        (encoded(np.ones((8, 9, 3), np.uint8)), picture(), "mode RGB"),
    ],
)
def test_unusable_labels_are_told(build, mask, feature, expected):
    records = make_records([np.ones((8, 9), np.uint8)] * 2)
    for record in records:
        record["mask"] = mask
    assert expected in message_of(spots_of, build(records, FEATURES | {"mask": feature}))


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
    message = message_of(spots_of, folder, "test")
    assert "'mask' of spots/1.2.0 test, test_000000 cannot be read" in message
    assert "0x" not in message
    with pytest.raises(UserError, match=r"'image' of spots/1\.2\.0 train, train_000000 cannot be"):
        spots_of(folder, "train").read(0)


def test_missing_and_truncated_shards_are_told(build):
    folder = build(make_records(make_labels()), FEATURES)
    shard = next(folder.glob("spots/*/*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    message = message_of(spots_of, folder)
    assert "spots/1.2.0 train, record 0 cannot be read" in message
    shard.unlink()
    assert f"{shard} is missing" in message_of(spots_of, folder)


# ----------------------------------------------------------------------------- what it says


def described(folder, name="features.json"):
    return folder / "spots" / "1.2.0" / name


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that can be imported, with a feature of its own."""
    (tmp_path / "somebodys.py").write_text(
        "import tensorflow_datasets as tfds\nclass Mask(tfds.features.Image): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "somebodys"
    sys.modules.pop("somebodys", None)


def test_modules_are_imported_with_permission_only(build, module):
    folder = build(make_records(make_labels()), FEATURES)
    path = described(folder)
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["mask"]["pythonClassName"] = f"{module}.Mask"
    path.write_text(json.dumps(features))
    message = message_of(spots_of, folder)
    assert f"{path} names the class '{module}.Mask'" in message
    assert module not in sys.modules
    assert len(TFDS("spots", folder, "train", MASK, allow_code=True)) == 3
    assert module in sys.modules


def test_the_module_of_the_builder_is_not_imported(build, module):
    folder = build(make_records(make_labels()), FEATURES)
    path = described(folder, "dataset_info.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moduleName": module}))
    spots_of(folder).read(0)
    assert module not in sys.modules


def test_the_default_config_is_in_the_folder(build):
    folder = build(make_records(make_labels()), FEATURES)
    inside = folder / "below"
    default = inside / "dots" / ".config" / "metadata.json"
    default.parent.mkdir(parents=True)
    default.write_text(json.dumps({"default_config_name": "../../spots"}))
    assert "'dots' is not prepared" in message_of(TFDS, "dots", inside, features=MASK)


@pytest.mark.parametrize(
    ("count", "expected"),
    [("999999999999", "has 999999999999 records, but its files have"), ("-1", "holds no images")],
)
def test_a_wrong_number_of_records_is_told(build, count, expected):
    folder = build(make_records(make_labels()), FEATURES)
    path = described(folder, "dataset_info.json")
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = [count]
    path.write_text(json.dumps(info))
    assert expected in message_of(spots_of, folder)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
WORDS = ("..", "{SPLIT}", "string", "-1", "99999999999", "tensorflow_datasets.core.features.x.Y")
VALUES = st.recursive(
    LEAVES | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def parts_of(content):
    """The objects and arrays in JSON, and the keys of their parts."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(pairs):
        yield content, key
        if isinstance(value, dict | list):
            yield from parts_of(value)


@pytest.fixture(scope="module")
def changeable(build):
    return build(make_records(make_labels()), FEATURES)


@settings(max_examples=EXAMPLES // 4, deadline=None)  # each opens a data set
@given(data=st.data(), name=st.sampled_from(["features.json", "dataset_info.json"]))
def test_any_change_is_told_or_taken(changeable, data, name):
    path = described(changeable, name)
    original = path.read_text()
    content = json.loads(original)
    parts = list(parts_of(content))
    owner, key = parts[data.draw(st.integers(0, len(parts) - 1))]
    owner[key] = data.draw(VALUES)
    path.write_text(json.dumps(content))
    try:
        spots_of(changeable).read(0)
    except UserError:
        pass
    finally:
        path.write_text(original)
