"""The input benchmark measures what it says."""

import re
import sys

from commands import run

from fsseg_jax.benchmarks import input as benchmark
from fsseg_jax.data.sources.voc import VOC

# In a process of its own, where what is compiled is optimised; but shortly.
SHORTLY = """
from fsseg_jax.benchmarks import input
input.WARM_UP, input.REPEATS, input.SECONDS, input.STEP_REPEATS = 1, 2, 0.2, 3
input.main()
"""


def test_made_folder_is_a_voc_folder_with_images_of_many_classes(tmp_path):
    benchmark.make_voc(tmp_path, images=12)
    source = VOC(tmp_path, "train")
    assert len(source) == 12
    assert source.read(0).image.shape == (288, 384, 3)
    assert len(set(source.table.class_id.tolist())) > 10


def test_prints_rates_and_the_ratio_of_two_steps_with_their_settings(users_environment):
    overrides = ("image_size=48", "shots=2", "backbone=tiny:Plain", "devices=1")
    command = [sys.executable, "-c", SHORTLY, *(f"--config.{field}" for field in overrides)]
    lines = run(*command, env=users_environment).stdout.splitlines()
    assert lines[0].startswith("devices: 1 x cpu")
    assert lines[1] == "data.root is empty: using synthetic images"
    assert lines[2].startswith("1-way 2-shot at 48 px, batches of 1, flip True, scale (0.9, 1.1)")
    for line, name in zip(lines[3:5], ("tfdata", "device"), strict=True):
        assert line.startswith(f"{name}: ")
        assert float(line.split()[1]) > 0
    pattern = r"([0-9.]+) ms on a constant batch, ([0-9.]+) ms .*: x ([0-9.]+) "
    constant, drawn, ratio = map(float, re.search(pattern, lines[5]).groups())
    assert min(constant, drawn) > 0
    assert 0.3 < ratio * constant / drawn < 3  # medians of ratios and of times are of one kind
