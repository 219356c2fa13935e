"""Loads a model: from a run, a saved model, the hub, or a configuration without training."""

import functools
import os
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from huggingface_hub.utils import HFValidationError, validate_repo_id
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.config import FIELDS, config_file, config_names, load_config, override
from fsseg_jax.devices import choose_platform, make_mesh, prepare, replicated
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation import crf
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.prediction import sharing
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.sharing import Saved


def load(model: str | os.PathLike, checkpoint: str = "best", **settings: Any) -> Segmenter:
    """Loads a model for segmenting images.

    Args:
        model: the folder of a run (`runs/panet`), a model that `Segmenter.save_pretrained` wrote,
            as a folder or on the Hugging Face hub (`hf://owner/name`, or `owner/name` if there is
            no folder `owner`), or a configuration: a file, or the name of one in `configs/`.
            A model that was saved with its supports is ready to predict.
            "panet_vgg16" is useful without any training: PANet's only parameters are those of its
            ImageNet-pretrained backbone. Untrained, it takes `model.prototypes = positions`
            unless that is set: see `models.training_free`.
        checkpoint: of a run: "best", "last" or another choice of `config.eval.checkpoint`; if the
            run has no such checkpoint, the closest one is loaded.
        **settings: fields of the configuration to change, such as `image_size=321` or
            `init="vgg16.safetensors"`; nested ones as `**{"eval.fit": "letterbox"}`. Besides
            `image_size` and `eval.fit`, `eval.scales`, `predict.flip` and `eval.crf` concern
            predictions. All devices of the best platform are used unless `devices` or `platform`
            are set. Compiled programs are kept for the next process, unless `compilation_cache` is
            False or JAX has a folder for them already.

    Raises:
        UserError: there is no such model, a setting does not exist, or weights cannot be loaded.

    Examples:
        >>> segmenter = load("quickstart", image_size=32, devices=1)  # warns: it is not trained
        >>> segmenter.config.method
        'panet'
    """
    if not isinstance(checkpoint, str) or checkpoint not in FIELDS["eval.checkpoint"].choices:
        words = " or ".join(FIELDS["eval.checkpoint"].choices)
        raise UserError(f"checkpoint = {brief(checkpoint)}: choose {words}.")
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    if str(settings.get("support_annotation", "dense")) != "dense":
        raise UserError(
            f"support_annotation = {settings['support_annotation']}: it is for episodes, whose "
            "annotations are drawn; give boxes or masks of your own to fit, or to --support."
        )
    machine = command_line.first_config(None, arguments)
    prepare(machine)
    if machine.platform:
        choose_platform(machine.platform)
    remedy = "a folder, a configuration, or hf://owner/name"
    name = sharing.check_name(model, "model", remedy)
    config, module, variables, trained, shown = _found(name, checkpoint, arguments)
    if config.eval.crf.iterations:
        crf.check_installed()
    mesh = make_mesh(config.devices if "devices" in settings else 0, local=True)
    segmenter = Segmenter(config, module, variables, mesh, trained)
    return segmenter if shown is None else segmenter.fit_shown(shown)


def _found(model: str, checkpoint: str, arguments: Sequence[str]) -> Saved:
    """The configuration, the model and its variables, as `load` finds them."""
    path = pathlib.Path(os.path.expanduser(model))
    if os.path.isfile(path / sharing.CONFIG):
        return sharing.read(path, arguments)
    if os.path.isdir(path):
        return _of_run(path, checkpoint, arguments)
    file = config_file(model)
    if file is not None:
        return _untrained(override(load_config(file), arguments), arguments)
    repository = _repository(model)
    if repository is not None:
        return sharing.read(sharing.download(repository), arguments)
    raise UserError(
        f"model = {brief(model)}: there is no such folder and no such configuration; choose one of "
        f"{', '.join(config_names())}, or hf://owner/name of a model on the hub."
    )


def _repository(model: str) -> str | None:
    """The hub's name of a model, if it may be one rather than a folder that does not exist.

    `runs/panet` beside a folder `runs` is none: a typing error should not ask the hub.

    Raises:
        UserError: it is said to be one by hf://, but cannot be.
    """
    explicit = re.match(r"hf:/+", model)  # of two slashes, a path keeps one
    name = model[explicit.end() :] if explicit else model
    owner, slash, _ = name.partition("/")
    try:
        validate_repo_id(name)
        named = bool(slash)
    except HFValidationError:
        named = False
    if explicit and not named:
        raise UserError(f"model = {brief(model)}: names on the hub are hf://owner/name.")
    return name if named and (explicit or not os.path.lexists(owner)) else None


def _untrained(config: ConfigDict, arguments: Sequence[str]) -> Saved:
    """The initial model of a configuration, with what is best before any training unless the
    arguments set it."""
    own = any(argument.startswith("--config.model.prototypes=") for argument in arguments)
    if "prototypes" in config.model and not own:
        config.model.prototypes = "positions"
    model = create_model(config)
    key = jax.random.key(config.seed)
    variables = init_variables(model, key, config.ways, config.shots, config.init)
    own = sorted(set(variables["params"]) - {"backbone"})
    if own or not config.init:
        what = ", ".join(own) if config.init else "its backbone"
        warnings.warn(
            f"this {config.method} is not trained: {what} has random weights, and its masks are "
            "meaningless.",
            stacklevel=4,
        )
    return Saved(config, model, variables, trained=False)


def _of_run(folder: pathlib.Path, checkpoint: str, arguments: Sequence[str]) -> Saved:
    # Imported here, because optimisers and checkpoints take seconds to import.
    from fsseg_jax.training.checkpoints import Checkpoints, available

    checkpoints = Checkpoints(folder)
    which = available(checkpoints, checkpoint)
    if which is None:
        raise UserError(
            f"{folder} holds neither checkpoints nor a {sharing.CONFIG}: give the folder of a run "
            "or of a saved model."
        )
    saved, _ = checkpoints.describe(which)
    config = sharing.changed(saved, arguments)
    model = create_model(config)
    initialise = functools.partial(init_variables, model, jax.random.key(0))
    like = jax.eval_shape(lambda: initialise(saved.ways, saved.shots))
    variables = checkpoints.restore_variables(which, like, replicated(make_mesh(1, local=True)))
    return Saved(config, model, variables, trained=True)
