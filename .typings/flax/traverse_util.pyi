"""What is used of it: Flax gives no types, and those that pyright infers are wrong."""

from collections.abc import Mapping
from typing import Any

def flatten_dict(xs: Mapping[str, Any], *, sep: str | None = ...) -> dict[Any, Any]: ...
def unflatten_dict(xs: Mapping[Any, Any], sep: str | None = ...) -> dict[str, Any]: ...
