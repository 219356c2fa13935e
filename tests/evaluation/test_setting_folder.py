"""Results of different settings are in different folders."""

from helpers import message_of

from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.evaluation.run import evaluate, setting_folder


def folder(*fields, protocol="c1ac3204", trained=True):
    config = default_config("canet")
    changed = override(config, [f"--config.{x}" for x in fields])
    return setting_folder(config if trained else None, changed, protocol)


def test_the_settings_of_the_run_and_other_speeds_have_the_folder_itself():
    assert folder() == ""
    assert folder("eval.batch_size=2", "devices=1", "platform=cpu", "data.root=elsewhere") == ""
    assert folder("predict.flip=True") == ""
    assert folder("init=weights.safetensors", "seed=3") == ""  # of which a checkpoint has its own


def test_untrained_models_have_folders_of_their_own():
    names = [
        folder(field, trained=False)
        for field in ("init=a", "init=b", "backbone=small", "seed=3", "model.refinements=2")
    ]
    whole = folder(trained=False)
    assert len({whole, *names}) == 6
    assert all(name.startswith("1way-1shot-fold0-c1ac3204-") for name in (whole, *names))
    assert folder("devices=1", trained=False) == whole
    other = default_config("panet")  # of another file
    assert setting_folder(None, other, "c1ac3204") not in (whole, *names)


def test_other_settings_have_folders_of_their_own():
    names = [
        folder("shots=5"),
        folder("data.fold=2"),
        folder("eval.runs=1", protocol="00000001"),
        folder("model.refinements=2"),
        folder("model.refinements=3"),
    ]
    assert names[:3] == [
        "1way-5shot-fold0-c1ac3204",
        "1way-1shot-fold2-c1ac3204",
        "1way-1shot-fold0-00000001",
    ]
    assert len({*names}) == len(names)
    assert folder("model.refinements=2", "devices=1") == names[3]


def test_a_place_where_results_cannot_be_written_is_told_before_all_is_computed(tmp_path):
    (tmp_path / "file").touch()
    told = message_of(evaluate, load_config("quickstart"), *[None] * 4, tmp_path / "file")
    assert "file cannot be written (File exists)" in told
