"""Configuration files: Python with a function `get_config()`."""

import importlib.util
import pathlib
import sys
import types

from ml_collections import ConfigDict

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

    Raises:
        UserError: there is no such file or function.
    """
    path, *argument = path.rsplit(":", 1) if not pathlib.Path(path).is_file() else [path]
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config = {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config = {path}: a config must be a Python file with get_config().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "get_config", None), types.FunctionType):
        raise UserError(f"--config = {path}: the file has no function get_config().")
    try:
        return _with_protocol(module.get_config(*argument))
    except (AttributeError, KeyError, TypeError) as error:
        while error.args and isinstance(error.args[0], Exception):  # ml_collections nests errors
            error = error.args[0]
        first, *others = str(error.args[0]).splitlines()
        # The lines between the two are the whole config.
        words = [first.split(" Other fields present")[0], *others[-1:]]
        raise UserError(f"--config = {path}: {' '.join(words).rstrip('.')}.") from None


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
