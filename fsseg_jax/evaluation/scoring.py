"""The episodes of all runs of an evaluation, scored in parts that fit into memory."""

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from fsseg_jax.data.annotations import choose
from fsseg_jax.data.source import Source
from fsseg_jax.episode import AnyArray, EpisodeIds, concatenate
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.evaluation.parts import Store, portions, shared_images
from fsseg_jax.evaluation.report import Example
from fsseg_jax.evaluation.scorer import THRESHOLDS, Counts
from fsseg_jax.evaluation.summary import means_of, summarise
from fsseg_jax.models import Method


class Scoring:
    """The episodes of all runs of an evaluation, scored in parts that fit into memory.

    Args:
        variables: the model's variables, on the mesh.
        by_seed: the episodes of each run, by its seed.
        store: encoded images that are shared with other evaluations; by default a new one if there
            are several parts.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Method,
        variables: Any,
        source: Source,
        mesh: Mesh,
        by_seed: dict[int, EpisodeIds],
        store: Store | None = None,
    ) -> None:
        self.config, self.model, self.variables = config, model, variables
        self.source, self.mesh, self.by_seed = source, mesh, by_seed
        self.episodes = concatenate(list(by_seed.values()))
        self.run_of = np.repeat(np.arange(len(by_seed)), [len(run) for run in by_seed.values()])
        ways, shots = self.episodes.supports.shape[1:]
        self.bits = np.concatenate(
            [choose(seed, np.arange(len(run)), ways, shots) for seed, run in by_seed.items()]
        )
        self.parts = portions(config, model, variables, source, self.episodes)
        self.store, self.room = store, (0, 0)
        if len(self.parts) > 1:
            self.store = store or Store(shared_images(self.episodes, self.parts))
            several = [self.episodes.take(rows) for rows in self.parts]
            self.room = tuple(
                max(len(np.unique(ids)) for ids in each)
                for each in ([e.images for e in several], [e.query for e in several])
            )
        self.seconds = np.zeros(3)  # reading, encoding, scoring
        self.counts = self._score()  # of the model (""), and of its ablations by name

    def _evaluator(self, rows: Int[np.ndarray, " part"]) -> Evaluator:
        part, bits = self.episodes.take(rows), self.bits[rows]
        return Evaluator(self.model, self.source, part, self.mesh, self.config, bits, self.room)

    def _score(self) -> dict[str, Counts]:
        counts: dict[str, list[Counts]] = {}
        for rows in self.parts:
            times = [time.perf_counter()]
            self.evaluator = self._evaluator(rows)
            times.append(time.perf_counter())
            self.caches = self.evaluator.encode(self.variables, self.store)
            times.append(time.perf_counter())
            for name, model in {"": None, **self.model.ablations()}.items():
                part = self.evaluator.score(self.variables, self.caches, model)
                counts.setdefault(name, []).append(part)
            times.append(time.perf_counter())
            self.seconds += np.diff(times)
        back = np.argsort(np.concatenate(self.parts))
        return {
            name: jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)
            for name, parts in counts.items()
        }

    def compare(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Additional figures: of the ablations, and of everything at other thresholds.

        Args:
            thresholds: those of the model ("") and of its ablations by name; may be empty.
        """

        def means(values: Int[AnyArray, "episode class 3"]) -> dict[str, float]:
            return means_of(summarise(values, self.by_seed, self.source.class_names))

        def thresholded(name: str) -> dict[str, Any]:
            if name not in thresholds:
                return {}
            threshold, counts = thresholds[name], self.counts[name].thresholds
            assert counts is not None  # because `eval.threshold` is set
            column = counts[:, THRESHOLDS.index(threshold)]
            figures = {"threshold": threshold, "chosen_on": self.config.eval.threshold}
            return {"thresholded": {**figures, **means(column)}}

        without = {
            name: {**means(counts.borders[self.config.eval.border]), **thresholded(name)}
            for name, counts in self.counts.items()
            if name
        }
        return thresholded("") | ({"without": without} if without else {})

    def gallery(self, ious: Float[np.ndarray, " episode"]) -> dict[str, list[Example]]:
        """The best, median and worst episodes, for the report."""
        # Small data sets repeat episodes: show each once.
        supports = self.episodes.supports.reshape(len(self.episodes), -1)
        ids = [self.episodes.classes, supports, self.episodes.query[:, None]]
        _, first = np.unique(np.concatenate(ids, axis=1), axis=0, return_index=True)
        order = np.sort(first)
        order = order[np.argsort(-ious[order], kind="stable")]
        shown = min(self.config.eval.gallery, len(order))
        middle = (len(order) - shown) // 2
        chosen = {
            "Best": order[:shown],
            "Median": order[middle : middle + shown],
            "Worst": order[len(order) - shown :],
        }
        at, evaluator, caches = self.parts[0], self.evaluator, self.caches
        if len(self.parts) > 1:  # only the last part is still encoded
            at = np.unique(np.concatenate(list(chosen.values())))
            if len(at):
                evaluator = self._evaluator(at)
                caches = evaluator.encode(self.variables, self.store)
        return {
            heading: [
                evaluator.example(
                    self.variables,
                    caches,
                    int(np.searchsorted(at, row)),
                    f"Episode {row + 1}",
                    float(ious[row]),
                )
                for row in rows
            ]
            for heading, rows in chosen.items()
        }
