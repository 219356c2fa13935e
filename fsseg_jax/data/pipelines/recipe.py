"""What a training batch holds: the settings that both pipelines share."""

import dataclasses
from types import ModuleType

import jax
import numpy as np
from jaxtyping import Integer
from ml_collections import ConfigDict

from fsseg_jax.data.annotations import DENSE, Annotation, annotation_of, choose
from fsseg_jax.data.pipelines.augment import Geometry, episode_geometry
from fsseg_jax.data.sampling import Items, sample
from fsseg_jax.episode import AnyArray, EpisodeIds


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How batches are drawn: batch number `step` has the episodes from step * batch_size on."""

    ways: int
    shots: int
    batch_size: int  # episodes per step, over all processes
    image_size: int  # side of the square that images are resized to
    seed: int  # of the episodes and of the augmentation
    augmentation: ConfigDict  # `config.data.augment`
    annotation: Annotation = DENSE  # of the supports
    sampling: str = "classes"  # how queries are drawn; see `sampling.sample`
    border: str = "ignored"  # what label 255 of an image counts as; see `squares.bordered`
    # With tf.data, each of `processes` processes makes its own slice of every batch.
    process: int = 0
    processes: int = 1

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Recipe":
        """The recipe of a configuration, for this process."""
        data = config.data
        sizes = config.ways, config.shots, config.train.batch_size, config.image_size
        how = data.augment, annotation_of(config), data.sampling, data.border
        return cls(*sizes, config.seed, *how, jax.process_index(), jax.process_count())

    @property
    def share(self) -> int:
        """Episodes per step of this process."""
        return self.batch_size // self.processes

    @property
    def slots(self) -> int:
        """Images per episode: the supports, way by way, then the query."""
        return self.ways * self.shots + 1

    @property
    def marked(self) -> bool:
        """Whether weak annotations need marks; see `annotations.square_marks`."""
        return self.annotation.kind != "dense"

    def episodes(
        self, items: Items, index: Integer[AnyArray, " batch"], xp: ModuleType = np
    ) -> EpisodeIds:
        """Draws the episodes number `index`."""
        return sample(items, self.seed, index, self.ways, self.shots, xp, self.sampling)

    def geometry(self, index: Integer[AnyArray, " batch"], xp: ModuleType = np) -> Geometry:
        """Draws the augmentation of these episodes' images, (batch, slots)."""
        return episode_geometry(
            self.seed, index, self.slots, self.image_size, self.augmentation, xp
        )

    def choices(
        self, index: Integer[AnyArray, " batch"], xp: ModuleType = np
    ) -> Integer[AnyArray, "batch way shot"]:
        """Draws the random bits by which `annotations.annotated` chooses objects."""
        return choose(self.seed, index, self.ways, self.shots, xp)
