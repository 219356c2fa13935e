"""How fast training episodes are made: python -m fsseg_jax.benchmarks.input --config.data.root=DIR

Times the input pipeline alone, all augmentations on. Without a data folder it makes one: JPEGs
of 384 x 288 px of coloured shapes, which decode about as fast as photographs do.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax import command_line
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.data import open_source, training_batches, training_items
from fsseg_jax.data.shapes import Shapes
from fsseg_jax.data.source import cores
from fsseg_jax.devices import choose_platform

WARM_UP, REPEATS, SECONDS = 20, 5, 4.0


def benchmark_config() -> ConfigDict:
    """PASCAL-5i at 321 px with every augmentation."""
    config = default_config("panet")
    config.image_size = 321
    config.data.train_min_pixels = 1208  # PFENet's 2,048 for photographs of 384 px
    config.data.augment.scale = (0.9, 1.1)  # PFENet's augmentation, as are the 10 degrees
    config.data.augment.rotation = 10.0
    return config


def make_voc(root: pathlib.Path, photographs: int = 100) -> None:
    """Writes a small VOCdevkit folder of made photographs."""
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    source = Shapes("train", photographs, 288)
    for index, name in enumerate(source.ids):
        image, label, _ = source.read(index)
        noise = np.random.default_rng(index).normal(0, 8, image.shape)
        image = Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))
        image.resize((384, 288)).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        label = Image.fromarray(np.minimum(label, 20))  # VOC's number of classes
        label = label.resize((384, 288), Image.Resampling.NEAREST)
        label.save(root / "SegmentationClassAug" / f"{name}.png")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(source.ids))


def episodes_per_second(config: ConfigDict) -> list[float]:
    """Episodes a second of several repeats, after a warm-up."""
    source = open_source(config.data, config.data.train_split)
    batches = training_batches(config, source, training_items(config.data, source), start=0)
    for _ in range(WARM_UP):
        next(batches)
    rates = []
    for _ in range(REPEATS):
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            next(batches)
            steps += 1
        seconds = time.perf_counter() - started
        rates.append(steps * config.train.batch_size / seconds)
    return rates


def main() -> None:
    """The program."""
    path, _, overrides = command_line.parse(__doc__, workdir=False)
    config = override(load_config(path) if path else benchmark_config(), overrides)
    choose_platform(config.platform)
    with tempfile.TemporaryDirectory() as folder:
        if config.data.name == "voc" and not config.data.root:
            print("data.root is empty: using made photographs")
            make_voc(pathlib.Path(folder))
            config.data.root, config.data.train_min_pixels = folder, 1
        rates = episodes_per_second(config)
    print(
        f"{config.data.pipeline}: {statistics.median(rates):.0f} episodes/s (median of {REPEATS}; "
        f"{min(rates):.0f} to {max(rates):.0f}), {config.ways}-way {config.shots}-shot at "
        f"{config.image_size} px, flip {config.data.augment.flip}, scale "
        f"{config.data.augment.scale}, rotation {config.data.augment.rotation}, "
        f"{cores()} cores"
    )


if __name__ == "__main__":
    command_line.run(main)
