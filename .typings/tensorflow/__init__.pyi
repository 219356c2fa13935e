"""Anything: most of TensorFlow's functions have no types, or types that leave out arrays."""

from typing import Any

def __getattr__(name: str) -> Any: ...
