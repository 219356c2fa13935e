"""Rough estimates of how long trainings and tests take, from the speeds of trainings."""

import math
import statistics
from collections.abc import Sequence

from ml_collections import ConfigDict

from fsseg_jax.config import load_config, override
from fsseg_jax.data.source import Source
from fsseg_jax.evaluation.published import Table
from fsseg_jax.evaluation.tables.cells import (
    Place,
    config_path,
    protocol_overrides,
    test_source,
    training_overrides,
)
from fsseg_jax.reproduction.plan import Planner, Training
from fsseg_jax.reproduction.settings import SELECTION_EPISODES, SELECTIONS
from fsseg_jax.reproduction.speed import Speed

# The forward pass of one image takes this part of a training episode, which has two images and a
# backward pass that takes about twice as long.
FORWARD = 1 / 6
TEST_STARTUP = 0.6  # startup of a test relative to that of a training, which compiles more


class Estimates:
    """Estimates seconds of trainings and tests of a table.

    Attributes:
        speeds: measured speeds by kind of training.
        sources: cache of opened data sets, see `cells.test_source`.
    """

    def __init__(self, table: Table, planner: Planner) -> None:
        self.table, self.planner = table, planner
        self.speeds: dict[str, Speed] = {}
        self.sources: dict[str, Source] = {}

    def steps(self, training: Training) -> float:
        """The remaining steps of a training."""
        left = (training.steps - training.done) * training.batch_size
        return left / self.speeds[training.kind].rate

    def rest(self, training: Training, places: Sequence[Place]) -> float:
        """Everything but the steps of a training: startup, selection, and the tests of places."""
        train, speed = training.config.train, self.speeds[training.kind]
        selections = math.ceil((training.steps - training.done) / train.eval_every)
        episodes = train.eval_episodes
        if self.planner.budget:  # may not have been applied yet
            selections = min(selections, SELECTIONS)
            episodes = min(episodes, SELECTION_EPISODES)
        scored = selections * len(train.select_on.split("+"))
        scored *= self._scoring(training.config, episodes, 1, speed)
        return speed.startup + scored + sum(self.test(place, speed) for place in places)

    def test(self, place: Place, speed: Speed | None = None) -> float:
        """A test, at the mean of all speeds if that of the model is not known."""
        known = self.speeds.values()
        speed = speed or Speed(*(statistics.fmean(values) for values in zip(*known, strict=True)))
        arguments = [*training_overrides(place), *protocol_overrides(self.table, place)]
        arguments += [f"--config.{field}" for field in place.row.test]
        arguments += self.planner.testing(place)
        config = override(load_config(config_path(place.row)), arguments)
        episodes, shots = config.eval.episodes * config.eval.runs, place.setting[1]
        seconds = self._scoring(config, episodes, shots, speed)
        if config.eval.threshold:
            seconds += self._scoring(config, config.train.eval_episodes, shots, speed)
        return TEST_STARTUP * speed.startup + seconds

    def _scoring(self, config: ConfigDict, episodes: int, shots: int, speed: Speed) -> float:
        """Encoding images and scoring episodes."""
        images = min(episodes * (1 + shots), len(test_source(config, self.sources)))
        return (images + episodes) * FORWARD / speed.rate
