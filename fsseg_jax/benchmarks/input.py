"""Measures the input pipelines: python -m fsseg_jax.benchmarks.input --config.data.root=DIR

With all augmentations on, measures how many episodes per second each pipeline makes on its own, and
how much longer a training step takes with the device pipeline than on one constant batch. Without
a data folder it makes one: 384 x 288 px JPEGs of coloured shapes, which decode about as fast as
photographs do.
"""

import importlib.util
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from fsseg_jax import command_line
from fsseg_jax.benchmarks.measure import by_turns
from fsseg_jax.benchmarks.workloads import constant, open_pipeline, training
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.data import Pipeline, open_source, training_items
from fsseg_jax.data.parallel import cores
from fsseg_jax.data.sources.shapes import Shapes
from fsseg_jax.devices import describe, make_mesh

WARM_UP, REPEATS, SECONDS = 20, 5, 4.0
STEP_REPEATS = 11  # dispatches


def benchmark_config() -> ConfigDict:
    """PANet on PASCAL-5i at 225 px, a size that a CPU can train at, with every augmentation."""
    config = default_config("panet")
    config.image_size = 225
    config.data.train_min_pixels = 1208  # PFENet's 2,048, scaled to images of 384 px
    config.data.augment.scale = (0.9, 1.1)  # this and the rotation are PFENet's
    config.data.augment.rotation = 10.0
    return config


def make_voc(root: pathlib.Path, images: int = 100) -> None:
    """Writes a small VOCdevkit folder of synthetic images."""
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    source = Shapes("train", images, 288)
    for index, name in enumerate(source.ids):
        image, label = source.read(index)
        noise = np.random.default_rng(index).normal(0, 8, image.shape)
        image = Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))
        image.resize((384, 288)).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        label = Image.fromarray(np.minimum(label, 20))  # VOC's number of classes
        label = label.resize((384, 288), Image.Resampling.NEAREST)
        label.save(root / "SegmentationClassAug" / f"{name}.png")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(source.ids))


def episodes_per_second(pipeline: Pipeline, batch_size: int) -> list[float]:
    """Episodes per second that a pipeline makes on its own: several repeats, after a warm-up."""
    draw, rates, step = jax.jit(pipeline.draw), [], 0

    def batch() -> Any:
        nonlocal step
        step += 1
        return jax.block_until_ready(draw(pipeline.feed(1), 0, step))

    for _ in range(WARM_UP):
        batch()
    for _ in range(REPEATS):
        started, first = time.perf_counter(), step
        while time.perf_counter() - started < SECONDS:
            batch()
        rates.append((step - first) * batch_size / (time.perf_counter() - started))
    return rates


def seconds_per_step(config: ConfigDict, drawn: Pipeline, items: int, mesh: Mesh) -> np.ndarray:
    """Seconds of a training step on a constant batch and on drawn ones, by turns: (repeat, 2)."""
    batch = jax.jit(drawn.draw)(drawn.feed(1), 0, 0)
    pipelines = constant(batch, mesh), drawn
    runs = [training(config, pipeline, items, mesh).run for pipeline in pipelines]
    return by_turns(runs, STEP_REPEATS) / config.train.steps_per_dispatch


def main() -> None:
    """Runs the program."""
    arguments, overrides = command_line.parse(__doc__, workdir=False)
    config = load_config(arguments.config) if arguments.config else benchmark_config()
    config = override(config, overrides)
    command_line.start(config)
    mesh = make_mesh(config.devices)
    print(f"{describe(mesh)}; {cores()} cores")
    with tempfile.TemporaryDirectory() as folder:
        if config.data.name == "voc" and not config.data.root:
            print("data.root is empty: using synthetic images")
            make_voc(pathlib.Path(folder))
            config.data.root, config.data.train_min_pixels = folder, 1
            config.data.device.cache = False
        source = open_source(config.data, "train")
        augment, batch_size = config.data.augment, config.train.batch_size
        print(
            f"{config.ways}-way {config.shots}-shot at {config.image_size} px, batches of "
            f"{batch_size}, flip {augment.flip}, scale {augment.scale}, rotation "
            f"{augment.rotation}"
        )
        for name in ("tfdata", "device"):
            if name == "tfdata" and not importlib.util.find_spec("tensorflow"):
                print("tfdata: TensorFlow is not installed")
                continue
            rates = episodes_per_second(open_pipeline(config, name, source, mesh), batch_size)
            print(
                f"{name}: {statistics.median(rates):.0f} episodes/s made (median of {REPEATS}; "
                f"{min(rates):.0f} to {max(rates):.0f})"
            )
        items = len(training_items(config.data, source).image)
        pipeline = open_pipeline(config, "device", source, mesh)
        seconds = seconds_per_step(config, pipeline, items, mesh)
    constant, drawn = np.median(seconds, axis=0)
    ratios = seconds[:, 1] / seconds[:, 0]
    print(
        f"step of {config.method} on {config.backbone}, {config.train.steps_per_dispatch} a "
        f"dispatch: {1e3 * constant:.1f} ms on a constant batch, {1e3 * drawn:.1f} ms with "
        f"data.pipeline = device: x {np.median(ratios):.3f} (median of {STEP_REPEATS} pairs; "
        f"{ratios.min():.3f} to {ratios.max():.3f})"
    )


if __name__ == "__main__":
    command_line.run(main)
