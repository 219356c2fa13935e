"""What every method returns."""

from typing import Any

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Output:
    """The segmentation of one query.

    Attributes:
        logits: one channel a class of the episode, background first, at the features' resolution
            or any other; what needs another one resizes them in the method's corner convention.
        aux: what only the method's loss needs.
        row: what to keep for the next time that the query's item comes up in training, or None.
        measured: named scalars that an evaluation reports the means of.
    """

    logits: Float[Array, "h w class"]
    aux: dict[str, Any]
    row: Array | None = None
    measured: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
