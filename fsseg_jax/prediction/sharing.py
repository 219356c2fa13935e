"""Saved models, to share: a folder with `config.json` and `model.safetensors`, or the hub.

The folder also holds `supports.safetensors` if the model is saved with its supports.
"""

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from ml_collections import ConfigDict

from fsseg_jax import hub
from fsseg_jax.backbones.pretrained import first_sentence
from fsseg_jax.checksums import checksum_of, checksums, verify
from fsseg_jax.config import from_saved, override
from fsseg_jax.errors import UserError, brief
from fsseg_jax.models import Method, create_model, init_variables
from fsseg_jax.prediction import fitted
from fsseg_jax.prediction.fitted import Shown

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = [CONFIG, WEIGHTS, fitted.FILE]
CHECKSUMS = "checksums"  # of the weights, in the configuration
# There, too: whether the model was trained, and what is in the file of its supports.
TRAINED, SUPPORTS = "trained", "supports"
CHANGED = f"copy it again, or remove {CHECKSUMS} from {CONFIG} if the change is intended"
VERSION = 3  # of the format; 1 had no checksums, and 2 none of TRAINED and SUPPORTS
# What looking into a file of anything may raise.
_DAMAGED = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
# What huggingface_hub raises: errors of HTTP (whose library depends on the version), connections,
# files, names and uploads.
_HUB_ERRORS = (HTTPError, OSError, ValueError, RuntimeError)


def check_name(name: Any, what: str, remedy: str) -> str:
    """The text of a path or a name.

    Raises:
        UserError: it is none; the error calls it `what`, and says to give `remedy`.
    """
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UserError(f"{what} = {brief(name)}: give {remedy}.")
    return text


def save(
    folder: str | os.PathLike,
    config: ConfigDict,
    variables: Any,
    name: str = "model",
    about: str = "",
    licence: str = "",
    trained: bool | None = None,
    shown: Shown | None = None,
) -> None:
    """Writes a model to a folder, for `read`.

    Args:
        folder: the folder, which is made if it does not exist; a model in it is replaced.
        name: the model's name, or its owner/name on the hub, for the card.
        about: further sections of the card, in Markdown.
        licence: the licence by its name on the hub, such as "apache-2.0", for the card.
        trained: whether the model was trained for segmentation; None if that is not known.
        shown: supports to save with it.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = pathlib.Path(os.path.expanduser(folder))
    arrays = flatten_dict(jax.device_get(variables), sep="/")
    fields = {"fsseg_jax": VERSION, **config.to_dict()}
    contents = {WEIGHTS: safetensors.numpy.save(arrays)}
    if trained is not None:
        fields[TRAINED] = trained
    if shown is not None:
        contents[fitted.FILE], fields[SUPPORTS] = fitted.as_file(shown)
    fields[CHECKSUMS] = {CONFIG: checksum_of(fields), **checksums(arrays)}
    card = _card(config, arrays, name, about, licence, trained, shown)
    contents |= {
        CONFIG: json.dumps(fields, indent=2).encode(),
        CARD: card.encode(errors="backslashreplace"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # All files are written before any is replaced.
        with tempfile.TemporaryDirectory(prefix=".saving", dir=folder) as temporary:
            for file, content in contents.items():
                (pathlib.Path(temporary) / file).write_bytes(content)
            for file in contents:
                (pathlib.Path(temporary) / file).replace(folder / file)
        if shown is None:  # those of an earlier model
            (folder / fitted.FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error}): choose another.") from None


class Saved(NamedTuple):
    """A model that was saved."""

    config: ConfigDict
    model: Method
    variables: Any
    trained: bool | None = None  # None if that is not known
    shown: Shown | None = None  # its supports


def read(folder: pathlib.Path, arguments: Sequence[str] = ()) -> Saved:
    """What `save` wrote.

    `arguments` change fields, as `--config.field=value`.

    Raises:
        UserError: a file is missing, broken or damaged, or the two do not match.
    """
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text("utf-8"))
        version = fields.pop("fsseg_jax")
        if type(version) is not int or version < 1:
            raise ValueError(f"fsseg_jax = {version!r} is not a version of the format")
        if version > VERSION:
            raise UserError(
                f"it has version {version} of the format, but this fsseg_jax reads up to "
                f"{VERSION}: install a newer one."
            )
        known = fields.pop(CHECKSUMS, None)
        whole = checksum_of({"fsseg_jax": version, **fields})
        trained, facts = fields.pop(TRAINED, None), fields.pop(SUPPORTS, None)
        own = whole if version >= 3 else checksum_of(fields)
        saved = from_saved(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): save the model again.") from None
    except _DAMAGED as error:
        raise UserError(
            f"{path} is not a configuration of fsseg_jax ({brief(error)}): save the model again."
        ) from None
    config = changed(saved, arguments)
    model = create_model(config)
    initialise = functools.partial(init_variables, model, jax.random.key(0))
    like = flatten_dict(jax.eval_shape(lambda: initialise(saved.ways, saved.shots)), sep="/")
    arrays = _read_weights(folder, like)
    # The first version with checksums had none of the configuration.
    if isinstance(known, dict) and known.pop(CONFIG, own) != own:
        raise UserError(
            f"{path} is damaged or was changed: its checksum is not the saved one; {CHANGED}."
        )
    verify(arrays, known, str(folder / WEIGHTS), CHANGED)
    shown = None if facts is None else fitted.read(folder, facts, saved, config, CHANGED)
    trained = trained if isinstance(trained, bool) else None
    return Saved(config, model, unflatten_dict(arrays, sep="/"), trained, shown)


def _read_weights(folder: pathlib.Path, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a saved model.

    Args:
        like: arrays or shapes by name, as the model has them.

    Raises:
        UserError: the file is missing or broken, or is of another model.
    """
    path = folder / WEIGHTS
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for its other end
            raise FileNotFoundError("there is no such file")
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, *_DAMAGED) as error:
        raise UserError(f"{path} cannot be read ({error}): save the model again.") from None
    ours, theirs = ({name: x.shape for name, x in tree.items()} for tree in (like, arrays))
    if ours != theirs:
        name = min(name for name, _ in ours.items() ^ theirs.items())
        raise UserError(
            f"{path} does not fit {folder / CONFIG}: {name} is {theirs.get(name, 'missing')} in "
            f"the file, and {ours.get(name, 'no array')} in the model; save the model again, or do "
            "not change its settings."
        )
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f"{path}: {name} holds {array.dtype}, not floating-point numbers; save the model "
                "again."
            )
    return arrays


def changed(saved: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """The configuration of a trained model with the fields that `arguments` change.

    Raises:
        UserError: a field does not exist, or cannot change after training.
    """
    config = override(saved, arguments)
    for field in ("ways", "shots"):
        if config[field] != saved[field]:
            raise UserError(
                f"{field} = {config[field]}: the model was trained for {saved[field]}, which "
                "cannot change; give it any number of supports instead."
            )
    return config


def download(repository: str) -> pathlib.Path:
    """Downloads a model from the Hugging Face hub into the hub's cache, and returns its folder.

    Raises:
        UserError: there is no such model, or no network.
    """
    offline = hub.is_unreachable()
    try:
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=FILES, local_files_only=offline
        )
    except _HUB_ERRORS as error:
        if offline:
            raise UserError(
                f"model = {repository} is neither a folder nor a configuration nor in the cache of "
                "downloads, and the Hugging Face hub cannot be reached: check the name and the "
                "network."
            ) from None
        raise UserError(
            f"model = {repository} is neither a folder nor a configuration, and cannot be "
            f"downloaded from the Hugging Face hub ({first_sentence(error)}): check the name and "
            "the network."
        ) from None
    return pathlib.Path(folder)


def upload(folder: str | pathlib.Path, repository: str, private: bool = False) -> str:
    """Uploads the folder of a model to the Hugging Face hub, as the user who is logged in.

    Returns:
        the address of the model.

    Raises:
        UserError: nobody is logged in, the name is not allowed, or there is no network.
    """
    try:
        url = huggingface_hub.create_repo(repository, private=private, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=[*FILES, CARD]
        )
    except _HUB_ERRORS as error:
        raise UserError(
            f"{repository} cannot be uploaded to the Hugging Face hub ({first_sentence(error)}): "
            "log in with `hf auth login`, and check the name and the network."
        ) from None
    return str(url)


def _card(
    config: ConfigDict,
    arrays: dict[str, Any],
    name: str,
    about: str,
    licence: str,
    trained: bool | None,
    shown: Shown | None,
) -> str:
    title = name.split("/")[-1]
    address = name if "/" in name else f"owner/{name}"
    count = sum(array.size for path, array in arrays.items() if path.startswith("params/"))
    license_line = f"license: {licence}\n" if licence else ""
    about = f"\n{about.strip()}\n" if about else ""
    ready = f"  # of {', '.join(shown.classes)}, which it is ready for" if shown else ""
    fit = "" if shown else 'segmenter.fit(["support.jpg"], masks=["support.png"])\n'
    return f"""---
library_name: fsseg_jax
pipeline_tag: image-segmentation
tags: [few-shot-segmentation, jax]
{license_line}---

# {title}

A few-shot segmenter: {config.method} on {config.backbone}, {count:,} parameters, for images as
squares of {config.image_size} pixels. {_training(config, trained)} `config.json` has all its
settings.

```python
import fsseg_jax

segmenter = fsseg_jax.load("hf://{address}")  # or a folder
{fit}mask = segmenter.predict("query.jpg"){ready}
```
{about}"""


def _training(config: ConfigDict, trained: bool | None) -> str:
    """Sentences about how a model was trained."""
    if trained is not False:
        data, fold = held_out(config)
        what = f"no class of {data}" if fold is None else f"fold {fold} of {data}"
        return f"It was trained for {config.ways}-way {config.shots}-shot; {what} was held out."
    weights = "random weights"
    if config.init:
        weights = f"the pretrained weights of {pathlib.PurePath(config.init).name}"
    told = f"**It was not trained for segmentation**: its backbone has {weights}."
    if config.model.get("prototypes", "mean") == "mean":
        return told
    return f"{told} All positions of the supports stand for their class, not only their mean."


def held_out(config: ConfigDict) -> tuple[str, int | None]:
    """The name of the data that a model was trained on, and the fold whose classes were held out;
    None if it was trained on all classes."""
    data = config.data
    whole = data.name in ("folder", "tfds") and data.folds == 0
    return data.tfds.name if data.name == "tfds" else data.name, None if whole else data.fold
