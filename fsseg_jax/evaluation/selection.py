"""Selection of the best checkpoints of a training."""

import functools
import logging

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from fsseg_jax.data.source import Source
from fsseg_jax.episode import episodes_hash
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.evaluation.metrics import best_threshold, run_metrics
from fsseg_jax.evaluation.protocol import draw_episodes
from fsseg_jax.evaluation.scorer import THRESHOLDS
from fsseg_jax.evaluation.strips import strip
from fsseg_jax.models import Method
from fsseg_jax.training.checkpoints import Checkpoints, selected
from fsseg_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Selection:
    """Keeps the checkpoint that scores best on validation images of some classes.

    Args:
        source: the validation images.
        name: name of the checkpoint; `selected` maps it to classes according to `train.select_on`.
        start: the step from which the run continues.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Method,
        source: Source,
        mesh: Mesh,
        checkpoints: Checkpoints,
        name: str,
        start: int,
    ) -> None:
        self.config, self.checkpoints = config, checkpoints
        self.name, self.which = name, selected(config.train.select_on)[name]
        episodes = draw_episodes(
            config, source, self.which, config.eval.seed, config.train.eval_episodes
        )
        self.episodes_hash = episodes_hash(episodes, source.ids)
        plain = config.copy_and_resolve_references()
        # Checkpoints are selected at the threshold 0.5. A model may rank pixels well long before it
        # predicts any object at 0.5: the score at the best threshold is logged too. (DenseCRF
        # gives no probabilities.)
        plain.eval.threshold = "" if config.eval.crf.iterations else "base"
        self.evaluator = Evaluator(model, source, episodes, mesh, plain)
        self.names = source.class_names
        self.best = -1.0
        # Mean-IoU of the last state, for the learning curve.
        self.at_best_threshold: float | None = None
        self.pictures: list[UInt8[np.ndarray, "height width 3"]] = []  # of some of its episodes
        if checkpoints.step(name) is not None:
            _, info = checkpoints.describe(name)
            if info["episodes_hash"] != self.episodes_hash:
                checkpoints.set_aside(name, f"{name} was selected on other episodes")
            elif info["step"] > start:
                checkpoints.set_aside(name, f"{name} is of a step that is done again")
            else:
                self.best = info["mean_iou"]

    def score(self, state: TrainState) -> float:
        """Returns the mean-IoU of a state in percent; saves the state if it is the best so far."""
        caches = self.evaluator.encode(state.variables)
        counts = self.evaluator.score(state.variables, caches)
        border = self.config.eval.border
        classes = self.evaluator.episodes.classes
        metrics = run_metrics(counts.borders[border], classes, self.names)
        mean_iou, beside = metrics["mean_iou"], ""
        drawn = min(self.config.train.eval_pictures, len(classes))
        evaluate = functools.partial(self.evaluator.example, state.variables, caches)
        self.pictures = [strip(evaluate(row, title="", iou=np.nan)) for row in range(drawn)]
        if counts.thresholds is not None:
            threshold = best_threshold(counts.thresholds, classes, THRESHOLDS)
            column = counts.thresholds[:, THRESHOLDS.index(threshold)]
            self.at_best_threshold = run_metrics(column, classes, self.names)["mean_iou"]
            beside = f", {self.at_best_threshold:.1f} at its best threshold, {threshold:.2f}"
        logger.info(
            "step %d: mean-IoU %.1f on %s classes%s (episodes %s)",
            *(state.step, mean_iou, self.which, beside, self.episodes_hash),
        )
        if mean_iou > self.best:
            self.best = mean_iou
            self.checkpoints.save(
                self.name,
                state,
                self.config,
                mean_iou=mean_iou,
                selected_on=self.which,
                classes=sorted(metrics["per_class"]),
                episodes_hash=self.episodes_hash,
            )
        return mean_iou
