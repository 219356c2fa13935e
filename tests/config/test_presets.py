"""Published protocols by name: what they set, what wins over them, and that none leaves traces."""

import pytest
from helpers import message_of

from fsseg_jax.config import FIELDS, default_config, differences, override
from fsseg_jax.config.checks import flatten
from fsseg_jax.config.presets import PRESETS, apply_preset


def change(config, *arguments):
    return override(config, [f"--config.{argument}" for argument in arguments])


def preset(name, *others, config=None):
    return change(config or default_config(), f"eval.protocol={name}", *others)


def test_names_are_those_of_the_published_codes():
    assert set(PRESETS) == {"panet", "canet", "pfenet", "hsnet", "bam", "mfnet"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("panet", "voc", "5 x 1000, classes, network, stretch, 1 px, trainaug, last"),
        ("panet", "coco", "5 x 1000, classes, network, stretch, 1 px, train2014, last"),
        ("canet", "voc", "1 x 1000, items, photograph, own, 2048 px, , best_novel"),
        ("canet", "coco", "1 x 1000, items, photograph, own, 2048 px, val2014, best_novel"),
        ("canet", "fss1000", "1 x 1000, items, photograph, own, 1 px, , best_validation"),
        ("pfenet", "voc", "1 x 5000, photographs, photograph, letterbox, 2048 px, , best_novel"),
        (
            *("pfenet", "coco"),
            "1 x 20000, photographs, photograph, letterbox, 2048 px, val2014, best_novel",
        ),
        ("hsnet", "voc", "1 x 1000, items, network, stretch, 2048 px, , best_novel"),
        ("hsnet", "coco", "1 x 1000, classes, network, stretch, 2048 px, val2014, best_novel"),
        ("hsnet", "fss1000", "1 x 2400, items, network, stretch, 1 px, , best_validation"),
        ("bam", "voc", "5 x 1000, photographs, photograph, letterbox, 2048 px, , best_novel"),
        ("mfnet", "voc", "5 x 1000, classes, network, stretch, 2048 px, , best"),
        (
            *("bam", "coco"),
            "5 x 1000, photographs, photograph, letterbox, 2048 px, val2014, best_novel",
        ),
        ("mfnet", "coco", "5 x 10000, classes, network, stretch, 2048 px, val2014, best"),
    ],
)
def test_each_sets_what_its_code_does(name, data, expected):
    config = preset(name, f"data.name={data}")
    options = config.eval
    found = (
        f"{options.runs} x {options.episodes}, {options.sampling}, {options.scored_at}, "
        f"{options.fit}, {config.data.min_pixels} px, {config.data.split}, {options.checkpoint}"
    )
    assert found == expected
    assert options.scales == ((0.7, 1.0, 1.3) if name == "canet" else (1.0,))
    background = name == "canet" and data != "coco"  # where label 255 is a crowd
    assert options.border == ("background" if background else "ignored")
    assert config.data.held_out_photographs == ("drop" if name == "bam" else "keep")
    masks = "category" if (name, data) == ("panet", "coco") else "label"
    assert config.data.coco.masks == masks
    assert options.protocol == name
    assert (options.setup, options.seed, options.episodes_file) == ("one_of_ways", 0, "")
    assert options.crf.iterations == 0


@pytest.mark.parametrize("name", PRESETS)
def test_none_touches_what_the_network_sees_or_how_it_is_trained(name):
    changed = set(differences(default_config(), preset(name))) - {"data.split", "data.min_pixels"}
    if name == "bam":  # which trains without images that show held-out classes
        changed.remove("data.held_out_photographs")
    assert all(field.startswith("eval.") for field in changed)


# CANet's protocol is used with two splits of COCO's classes: which one is the configuration's.
FREE = {"canet": {"data.coco.folds"}}


def unusual():
    """A configuration in which no field that a protocol could set has its default."""
    config = default_config()
    for field, value in flatten(config).items():
        if field in FIELDS and FIELDS[field].choices:
            value = next(choice for choice in reversed(FIELDS[field].choices) if choice != value)
        elif isinstance(value, tuple):
            value = tuple(7.5 for _ in value)
        elif isinstance(value, bool):
            value = not value
        else:
            value = value + type(value)(3)
        if field.startswith(("eval.", "data.")) and not field.startswith(
            ("data.name", "data.tfds")
        ):
            config.update_from_flattened_dict({field: value})
    return config


@pytest.mark.parametrize("data", ["voc", "pascal5i", "coco", "fss1000", "folder"])
def test_every_one_sets_the_checkpoint_and_all_that_any_other_sets(data):
    """Whatever the configuration was before, so that one leaves no traces in another."""
    starts = default_config(), unusual()
    for config in starts:
        config.data.name = "tfds" if data == "pascal5i" else data
        config.data.tfds.name = data if data == "pascal5i" else ""
    plain, strange = map(flatten, starts)
    results = {}
    for name in PRESETS:
        results[name] = []
        for start in starts:
            config = start.copy_and_resolve_references()
            apply_preset(config, name)
            results[name].append(flatten(config))
    fields = {
        field
        for after in results.values()
        for before, values in zip((plain, strange), after, strict=True)
        for field, value in values.items()
        if value != before[field]
    }
    assert {"eval.checkpoint", "eval.fit", "data.min_pixels", "eval.border", "data.split"} <= fields
    assert {f"eval.{name}" for name in ("seed", "setup", "episodes_file", "runs")} <= fields
    assert "eval.crf.iterations" in fields
    assert {"eval.batch_size", "eval.threshold", "data.root"}.isdisjoint(fields)
    for name, (one, other) in results.items():
        left = {field for field in fields if one[field] != other[field]}
        assert left <= FREE.get(name, set()), name


BESIDE = {
    "eval.runs": 3,
    "eval.episodes": 77,
    "eval.sampling": "classes",
    "eval.border": "ignored",
    "eval.checkpoint": "best_base",
    "eval.scored_at": "photograph",
    "eval.fit": "stretch",
    "eval.scales": (0.5, 2.0),
    "eval.crf.iterations": 4,
    "eval.seed": 9,
    "eval.setup": "metaseg",
    "data.min_pixels": 5,
    "data.split": "train",
    "ways": 2,
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("place", [0, 5, len(BESIDE)])
def test_what_is_given_beside_it_wins_wherever_it_stands(name, place):
    given = [f"{field}={value}" for field, value in BESIDE.items()]
    config = change(default_config(), *given[:place], f"eval.protocol={name}", *given[place:])
    flat = {field: new for field, (_, new) in differences(default_config(), config).items()}
    for field, value in BESIDE.items():
        assert flat.get(field, flatten(default_config())[field]) == value
    only_preset = flatten(preset(name))
    for field, value in flatten(config).items():
        if field not in BESIDE:
            assert value == only_preset[field], field


def test_the_data_set_that_is_asked_for_counts_not_that_of_the_file():
    coco = change(default_config(), "data.name=coco")
    assert preset("pfenet", config=coco).eval.episodes == 20_000
    assert preset("pfenet", "data.name=voc", config=coco).eval.episodes == 5000
    config = change(default_config(), "data.name=coco", "eval.protocol=pfenet")
    assert config.eval.episodes == 20_000
    assert preset("panet", "data.name=voc", config=coco).data.split == "trainaug"
    assert preset("panet", config=coco).data.split == "train2014"


@pytest.mark.parametrize("name", PRESETS)
def test_coco_of_tfds_has_the_same_protocols_by_its_own_splits_and_labels(name):
    tfds = preset(name, "data.name=tfds", "data.tfds.name=coco20i")
    files = preset(name, "data.name=coco")
    assert tfds.data.split == ("train" if name == "panet" else "")
    assert tfds.data.coco.masks == "label"
    same = ("data.name", "data.tfds.name", "data.split", "data.coco.masks")
    assert set(differences(tfds, files)) <= set(same)


def test_the_last_of_two_names_counts_and_the_original_is_not_changed():
    config = default_config()
    twice = preset("panet", "eval.protocol=canet", config=config)
    assert twice.to_dict() == preset("canet").to_dict()
    assert config.to_dict() == default_config().to_dict()


def test_an_unknown_name_is_told_with_those_there_are():
    message = message_of(preset, "pascal")
    assert message.startswith("eval.protocol = 'pascal': choose one of ")
    assert all(name in message for name in PRESETS)


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        (("eval.scales=0.7,1.0", "eval.scales=(0.5,2.0)"), "scales", (0.5, 2.0)),
        (("eval.scales=(0.5,2.0)", "eval.scales=0.5"), "scales", (0.5,)),
        (("eval.protocol=canet", "eval.scales=(0.5,2.0)"), "scales", (0.5, 2.0)),
        (("eval.scales=(0.5,2.0)", "eval.protocol=canet"), "scales", (0.5, 2.0)),
        (("eval.scales=1.5", "eval.protocol=canet", "eval.scales=2.5"), "scales", (2.5,)),
        (("eval.episodes=3", "eval.protocol=canet", "eval.episodes=4"), "episodes", 4),
        (("eval.sampling=items", "eval.sampling=classes"), "sampling", "classes"),
    ],
    ids=str,
)
def test_the_last_value_of_a_field_counts(given, field, expected):
    """A tuple is not appended to."""
    config = change(default_config(), *given)
    assert config.eval[field] == expected
    saved = change(config, *given)  # nor to that of a checkpoint
    assert saved.eval[field] == expected
