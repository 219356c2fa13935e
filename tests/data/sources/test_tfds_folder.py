"""What a TFDS data set says of itself is checked before TFDS reads it."""

import json

import pytest
from fuzz import EXAMPLES
from helpers import message_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsseg_jax.data.sources.tfds_folder import check_folder, own_metadata
from fsseg_jax.errors import UserError

OWN = "tensorflow_datasets.core.features"
IMAGE = {"pythonClassName": f"{OWN}.image_feature.Image", "image": {"dtype": "uint8"}}
FOREIGN = {"pythonClassName": "somebody.features.Image", "image": {"dtype": "uint8"}}


def top(**features):
    return {
        "pythonClassName": f"{OWN}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def legacy(name, content):
    return {"type": name, "content": content}


def folder_of(folder, features=None, **info):
    features = top(image=IMAGE) if features is None else features
    (folder / "features.json").write_text(json.dumps(features))
    info = {"name": "spots", "splits": [{"name": "train", "shardLengths": ["3"]}], **info}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


SEQUENCE = f"{OWN}.sequence_feature.Sequence"
IN_JSON = json.dumps({"feature": FOREIGN, "length": None})
IN_JSON_OF_JSON = json.dumps(
    {"feature": {"pythonClassName": SEQUENCE, "jsonFeature": {"json": IN_JSON}}}
)


@pytest.mark.parametrize(
    "features",
    [
        FOREIGN,
        top(image=IMAGE, mask=FOREIGN),
        top(image=IMAGE, more=top(mask=FOREIGN)),
        top(image={"python_class_name": "somebody.features.Image", "image": {}}),
        top(many={"pythonClassName": SEQUENCE, "sequence": {"feature": FOREIGN}}),
        top(many={"pythonClassName": SEQUENCE, "jsonFeature": {"json": IN_JSON}}),
        top(many={"pythonClassName": SEQUENCE, "jsonFeature": {"json": IN_JSON_OF_JSON}}),
        legacy("somebody.features.Image", {}),
        legacy(f"{OWN}.features_dict.FeaturesDict", {"a": legacy("somebody.features.Image", {})}),
        legacy(f"{OWN}.features_dict.FeaturesDict", json.dumps(top(mask=FOREIGN))),
    ],
)
def test_classes_of_others_are_found_wherever_they_are_named(tmp_path, features):
    folder = folder_of(tmp_path, features)
    message = message_of(check_folder, folder, False)
    assert str(folder / "features.json") in message
    assert "'somebody.features.Image'" in message
    assert "data.tfds.allow_code = True" in message
    check_folder(folder, allow_code=True)

    (folder / "features.json").write_text(json.dumps(top(image=IMAGE)))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert str(folder / "dataset_info.json") in message_of(check_folder, folder, False)


@pytest.mark.parametrize(
    "name",
    [
        "os.path.join",
        "evil",
        "",
        f"{OWN}",
        f"x.{OWN}.Image",
        f"{OWN}..Image",
        f"{OWN}.Image;os",
        f"{OWN}.Image\n",
        "tensorflow_datasets.core.featuresque.Image",
        "tensorflow_datasets.scripts.cli.main.Image",
    ],
)
def test_only_names_of_tfds_features_are_taken(tmp_path, name):
    folder = folder_of(tmp_path, top(image={"pythonClassName": name}))
    assert repr(name) in message_of(check_folder, folder, False)


def test_features_of_tfds_are_taken_in_both_formats(tmp_path):
    text = {"pythonClassName": f"{OWN}.text_feature.Text", "description": 'a "{" and a {brace}'}
    check_folder(folder_of(tmp_path, top(image=IMAGE, text=text, type=text)), False)
    old = legacy(f"{OWN}.features_dict.FeaturesDict", {"type": legacy(f"{OWN}.text.Text", {})})
    check_folder(folder_of(tmp_path, old), False)


@pytest.mark.parametrize(
    "info",
    [
        {"name": "../spots"},
        {"name": ".."},
        {"name": 5},
        {"name": "a" * 1000},
        {"configName": "/etc"},
        {"config_name": "a\\b"},
        {"fileFormat": "../array_record"},
        {"splits": [{"name": "../train"}]},
        {"splits": "train"},
        {"splits": ["train"]},
        *(
            {"splits": [{"name": "train", field: template}]}
            for field in ("filepathTemplate", "filepath_template")
            for template in (
                "../{SPLIT}",
                "/etc/{SPLIT}",
                "a/../../{SPLIT}",
                "{SPLIT:>99999999999}",
                "{SPLIT.__class__}",
                "{OTHER}",
                "{",
                5,
                "\0",
            )
        ),
    ],
)
def test_names_that_lead_out_of_the_folder_are_told(tmp_path, info):
    folder = folder_of(tmp_path, **info)
    assert str(folder / "dataset_info.json") in message_of(check_folder, folder, True)


def test_templates_of_files_below_the_folder_are_taken(tmp_path):
    for template in ("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{SPLIT}/{SHARD_INDEX}", ""):
        split = {"name": "train", "filepathTemplate": template}
        check_folder(folder_of(tmp_path, splits=[split]), False)


METADATA = {
    "classes": ["cat", "dog"],
    "folds": {"a": {"folds": [[1], [2]], "validation": []}},
    "instances": "",
}


def test_metadata_of_our_builders_are_read(tmp_path):
    assert own_metadata(tmp_path) == {}
    (tmp_path / "metadata.json").write_text(json.dumps({"other": 1}))
    assert own_metadata(tmp_path) == {}
    (tmp_path / "metadata.json").write_text(json.dumps({"fsseg_jax": METADATA}))
    assert own_metadata(tmp_path) == METADATA


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 5},
        {"classes": [1, 2]},
        {"folds": {}, "classes": "ab"},
        {"folds": []},
        {"folds": {"a": {"folds": [[1], [3]], "validation": []}}},
        {"folds": {"a": {"folds": [1], "validation": []}}},
        {"folds": {"a": {"folds": [[1]]}}},
        {"instances": 7},
    ],
)
def test_metadata_that_do_not_fit_are_told(tmp_path, change):
    (tmp_path / "metadata.json").write_text(json.dumps({"fsseg_jax": METADATA | change}))
    assert str(tmp_path / "metadata.json") in message_of(own_metadata, tmp_path)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["features.json", "dataset_info.json", "metadata.json"]),
    content=st.binary(max_size=60)
    | st.integers(1, 30_000).map(lambda depth: b'{"features": ' + b"[" * depth),
)
def test_any_bytes_are_told_or_taken(tmp_path, name, content):
    folder, message = folder_of(tmp_path), ""
    (folder / "metadata.json").unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    try:
        check_folder(folder, False)
        own_metadata(folder)
    except UserError as error:
        message = str(error)
    assert message == "" or str(folder / name) in message
    assert "\n" not in message
