"""Configuration files: Python with a function `get_config()`."""

import importlib.util
import os
import pathlib
import sys
import traceback
import types
from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.config.checks import flatten
from fsseg_jax.config.fields import default_config
from fsseg_jax.config.overrides import differences
from fsseg_jax.config.presets import apply_preset
from fsseg_jax.errors import UserError


def config_names() -> list[str]:
    """Names of the configurations in `configs/`."""
    return sorted(path.stem for path in _config_folder().glob("*.py"))


def config_file(name: str) -> str | None:
    """The file of a configuration, given as a file or by its name in `configs/`; None if neither.

    An argument after a colon is kept: see `load_config`.

    Examples:
        >>> pathlib.Path(config_file("shapes:canet")).name
        'shapes.py:canet'
        >>> config_file("mine/config.py"), config_file("no_such_name")
        ('mine/config.py', None)
    """
    if pathlib.Path(name.rsplit(":", 1)[0]).suffix == ".py":
        return name
    stem, *argument = name.split(":", 1)
    if stem not in config_names():
        return None
    return ":".join([str(_config_folder() / f"{stem}.py"), *argument])


def _config_folder() -> pathlib.Path:
    """The folder `configs/`: next to the package, or where it was installed."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "configs"
    return beside if beside.is_dir() else pathlib.Path(sys.prefix) / "share/fsseg_jax/configs"


def load_config(path: str) -> ConfigDict:
    """What `get_config()` of the Python file `path` returns, or `get_config("x")` of `path:x`.

    Args:
        path: the file, or the name of one in `configs/`, such as "panet_vgg16".

    Raises:
        UserError: there is no such file or function, or its code fails.

    Examples:
        >>> config = load_config("panet_vgg16")
        >>> config.method, config.backbone, config.image_size
        ('panet', 'vgg16', 417)
    """
    if not os.path.isfile(path):
        path, *argument = (config_file(path) or path).rsplit(":", 1)
    else:
        argument = []
    if not os.path.isfile(path):
        hint = "." if path.endswith(".py") else f"; choose one of {', '.join(config_names())}."
        if (stem := pathlib.Path(path).stem) in config_names():  # without a clone, say
            hint = f"; the library's own is --config={stem}."
        raise UserError(f"--config = {path}: there is no such file{hint}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config = {path}: a config must be a Python file with get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not isinstance(getattr(module, "get_config", None), types.FunctionType):
            raise UserError("the file has no function get_config()")
        config = module.get_config(*argument)
        _check_complete(config)
        return _with_protocol(config)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise UserError(f"--config = {path}: {_reason(error, spec.origin)}.") from None


def _check_complete(config: Any) -> None:
    """Raises UserError unless a configuration is one, and has all fields."""
    if not isinstance(config, ConfigDict) or "method" not in config:
        raise UserError("get_config() must return what fsseg_jax.config.default_config returns")
    if missing := sorted(flatten(default_config(config.method)).keys() - flatten(config).keys()):
        raise UserError(f"the configuration is incomplete: it lacks {missing[0]}")


def _reason(error: BaseException, path: str | None) -> str:
    """An error of a file's code in words, with the last of its lines that led to it."""
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    while error.args and isinstance(error.args[0], Exception):  # ml_collections nests errors
        error = error.args[0]
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)
    if isinstance(error, SyntaxError):
        line, error.args = error.lineno, (error.msg,)
    first, *others = str(next(iter(error.args), "")).splitlines() or [""]
    # The lines between the two are ml_collections's copy of the whole config.
    words = " ".join([first.split(" Other fields present")[0], *others[-1:]]).rstrip(".")
    telling = " " in words and isinstance(error, AttributeError | KeyError)
    reason = words if telling else f"{type(error).__name__}: {words}".rstrip(": ")
    return f"line {line}: {reason}" if line else reason


def _with_protocol(config: ConfigDict) -> ConfigDict:
    """The configuration with the fields that `eval.protocol` sets, except those the file
    changed."""
    if config.eval.protocol:
        preset, default = default_config(config.method), default_config(config.method)
        preset.data.name, preset.data.tfds.name = config.data.name, config.data.tfds.name
        apply_preset(preset, config.eval.protocol)
        kept, fields = differences(default, config), differences(default, preset)
        config.update_from_flattened_dict(
            {name: new for name, (_, new) in fields.items() if name not in kept}
        )
    return config
