"""The methods, one file each, behind one interface (`Method`) and by name (`METHODS`)."""

from fsseg_jax.models.method import Method
from fsseg_jax.models.output import Output
from fsseg_jax.models.registry import METHODS, create_model, default_options, init_variables

__all__ = ["METHODS", "Method", "Output", "create_model", "default_options", "init_variables"]
