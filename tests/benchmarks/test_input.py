"""The input benchmark measures what it says."""

import sys

from fsseg_jax.benchmarks import input as benchmark
from fsseg_jax.data.voc import VOC


def test_made_folder_is_a_voc_folder_with_photographs_of_many_classes(tmp_path):
    benchmark.make_voc(tmp_path, photographs=12)
    source = VOC(tmp_path, "train")
    assert len(source) == 12
    assert source.read(0).image.shape == (288, 384, 3)
    assert len(set(source.table.class_id.tolist())) > 10


def test_prints_a_rate_with_its_settings(monkeypatch, capsys):
    for name, value in (("WARM_UP", 1), ("REPEATS", 2), ("SECONDS", 0.2)):
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(sys, "argv", ["input", "--config.image_size=48", "--config.shots=2"])
    benchmark.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("data.root is empty: using made photographs")
    assert second.startswith("tfdata: ")
    rate = float(second.split()[1])
    assert rate > 0
    assert "1-way 2-shot at 48 px, flip True, scale (0.9, 1.1), rotation 10.0" in second
