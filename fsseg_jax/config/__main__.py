"""Prints the reference of the configuration: python -m fsseg_jax.config > docs/config.md"""

from fsseg_jax.config.reference import as_markdown

print(as_markdown(), end="")
