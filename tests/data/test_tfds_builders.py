"""The builders store what the sources read, and reading it needs no TensorFlow."""

import io
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
from helpers_coco import CATEGORIES, Drawn, rectangle
from helpers_data import rows_of, write_class, write_lists

from fsseg_jax.data.sources.fss1000 import FSS1000
from fsseg_jax.data.sources.tfds import BUILDERS, TFDS
from fsseg_jax.data.sources.voc import VOC

NO_TENSORFLOW = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = (
    lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find(name, *rest)
)
"""


def assert_same(ours, source):
    """Asserts that a data set holds what a source reads."""
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


@pytest.fixture(scope="module")
def voc_root(make_voc):
    root = make_voc(train=5, val=3, objects=True)
    (root / "SegmentationObject" / "2007_000001.png").unlink()
    lists = root / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text("2007_000003\n2007_000001\n2007_000002\n")
    return root


@pytest.fixture(scope="module")
def pascal(voc_root, tmp_path_factory):
    """PASCAL-5i as `tfds build` prepares it, without Apache Beam, which the command needs."""
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


def prepare(builder, folder, root):
    config = tfds.download.DownloadConfig(manual_dir=root)
    builder(data_dir=folder).download_and_prepare(
        file_format="array_record", download_config=config
    )


def test_fss1000_is_its_source(tmp_path):
    from fsseg_jax.data.tfds_builders.fss1000.fss1000_dataset_builder import Builder

    root = tmp_path / "fewshot_data"
    for number, name in enumerate(("ant", "bee", "cat", "dog", "elk")):
        write_class(root / name, images=3, size=(8 + number, 15 - 2 * number), seed=number)
    write_lists(root, {"train": ("ant", "dog"), "val": ("bee",), "test": ("cat", "elk")})
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
