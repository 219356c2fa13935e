"""What every method returns."""

from typing import Generic, TypeVar

from flax import struct
from jaxtyping import Array, Float

Aux = TypeVar("Aux")


@struct.dataclass
class Output(Generic[Aux]):
    """The segmentation of one query.

    Attributes:
        logits: one channel per class of the episode, background first, at any resolution. Callers
            resize them in the method's corner convention.
        aux: what only the method's loss needs, in a type of the method's own; None for nothing.
        row: what to store until the query's item is drawn again in training, or None.
        measured: named scalars; an evaluation reports their means.
    """

    logits: Float[Array, "h w class"]
    aux: Aux
    row: Array | None = None
    measured: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
