"""Results of different settings are in different folders."""

from fsseg_jax.config import default_config, override
from fsseg_jax.evaluation.run import setting_folder


def folder(*fields, protocol="c1ac3204"):
    config = default_config("canet")
    return setting_folder(config, override(config, [f"--config.{x}" for x in fields]), protocol)


def test_the_settings_of_the_run_and_other_speeds_have_the_folder_itself():
    assert folder() == ""
    assert folder("eval.batch_size=2", "devices=1", "platform=cpu", "data.root=elsewhere") == ""


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
