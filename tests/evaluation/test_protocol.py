"""The protocol: its hash changes with what makes figures incomparable, and with nothing else."""

import pytest

from fsseg_jax.config import default_config
from fsseg_jax.evaluation.protocol import protocol
from fsseg_jax.models import create_model


def settings(source, trained=None, **changes):
    config = default_config("panet")
    config.backbone = "small"
    config.update_from_flattened_dict(changes)
    return protocol(config, source, create_model(config), trained)


def training(**changes):
    config = default_config("panet")
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 321},
        {"data.min_pixels": 1},
        {"eval.runs": 1},
        {"eval.episodes": 10},
        {"eval.seed": 1},
        {"eval.episodes_file": "list.csv"},
        {"model.align_corners": True},
        {"model.ignored_is_background": False},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_what_changes_the_scoring_changes_the_hash(make_source, change):
    source = make_source()
    assert settings(source, **change)["hash"] != settings(source)["hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"data.fold": 1},
        {"shots": 5},
        {"eval.batch_size": 64},
        {"eval.gallery": 0},
        {"train.steps": 7},
        {"train.select_on": "novel"},
    ],
    ids=str,
)
def test_folds_shots_and_speed_share_a_protocol_where_nothing_was_trained(make_source, change):
    source = make_source()
    assert settings(source, **change)["hash"] == settings(source)["hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"shots": 5},
        {"train.select_on": "novel"},
        {"data.held_out_photographs": "drop"},
        {"data.train_min_pixels": 1},
    ],
    ids=str,
)
def test_how_the_model_was_trained_belongs_to_the_protocol(make_source, change):
    source = make_source()
    plain, changed = (settings(source, training(**c)) for c in ({}, change))
    assert changed["hash"] != plain["hash"]
    assert plain["hash"] != settings(source)["hash"]
