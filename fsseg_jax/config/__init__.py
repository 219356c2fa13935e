"""The configuration: its fields and their meaning, files, overrides and checks."""

from fsseg_jax.config.checks import check, flatten
from fsseg_jax.config.fields import FIELDS, default_config
from fsseg_jax.config.files import config_file, config_names, load_config
from fsseg_jax.config.overrides import differences, joined, override
from fsseg_jax.config.saved import from_saved

__all__ = [
    "FIELDS",
    "check",
    "config_file",
    "config_names",
    "default_config",
    "differences",
    "flatten",
    "from_saved",
    "joined",
    "load_config",
    "override",
]
