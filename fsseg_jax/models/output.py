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
        aux: what only the method's loss needs, of a type of the method's own; None if nothing.
        row: the row of the training state's table to store for the query's item, which is
            `previous` the next time that the item is the query; None if nothing.
        measured: named scalars that need no label (see `Method.measure` for others); an evaluation
            reports their means.

    Examples:
        >>> import jax.numpy as jnp
        >>> output = Output(jnp.zeros((8, 8, 2)), aux=None, measured={"shift": jnp.ones(())})
        >>> output.logits.argmax(axis=-1).shape, float(output.measured["shift"])
        ((8, 8), 1.0)
    """

    logits: Float[Array, "h w class"]
    aux: Aux
    row: Array | None = None
    measured: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
