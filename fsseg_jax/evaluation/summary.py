"""Figures from pixel counts: of each run, over all runs, and as text."""

from typing import Any

import numpy as np
from jaxtyping import Int

from fsseg_jax.episode import AnyArray, EpisodeIds
from fsseg_jax.evaluation.metrics import MEANS, run_metrics
from fsseg_jax.evaluation.report import changed_options, classes_of, other_figures


def summarise(
    counts: Int[AnyArray, "episode class 3"],
    by_seed: dict[int, EpisodeIds],
    names: dict[int, str],
) -> dict[str, Any]:
    """The figures of each run, and their means and standard deviations over the runs."""
    ends = np.cumsum([len(listed) for listed in by_seed.values()])
    runs = [
        run_metrics(part, listed.classes, names)
        for part, listed in zip(np.split(counts, ends[:-1]), by_seed.values(), strict=True)
    ]
    classes = [names[c] for c in sorted(names) if any(names[c] in run["per_class"] for run in runs)]
    return {
        **{name: float(np.mean([run[name] for run in runs])) for name in MEANS},
        **{f"{name}_std": float(np.std([run[name] for run in runs])) for name in MEANS},
        "per_class": {
            name: mean_of_known([r["per_class"].get(name) for r in runs]) for name in classes
        },
        "runs": runs,
    }


def means_of(summary: dict[str, Any]) -> dict[str, float]:
    """Those figures of `summarise` that are means over classes and runs."""
    return {name: summary[name] for name in MEANS}


def summary(results: dict[str, Any]) -> str:
    """The score in one line, with its protocol."""
    several = len(results["runs"]) > 1

    def score(name: str) -> str:
        return f"{results[name]:.1f}" + f" +- {results[f'{name}_std']:.1f}" * several

    star = f"mIoU* {score('mean_iou_star')}, " if results["ways"] > 1 else ""
    changed = "".join(f", {name} {value}" for name, value in changed_options(results).items())
    return (
        f"mean-IoU {score('mean_iou')}, {star}binary-IoU {results['binary_iou']:.1f} "
        f"({results['method']}{changed}, {results['checkpoint']}; {classes_of(results)}, "
        f"{results['ways']}-way {results['shots']}-shot, "
        f"{len(results['runs'])} x {results['episodes']} episodes; "
        f"protocol {results['protocol']['hash']}, episodes {results['episodes_hash']})"
    )


def comparisons(results: dict[str, Any]) -> list[str]:
    """Figures of the same predictions under other rules, as lines of text."""
    return [
        f"{words}: mean-IoU {figures['mean_iou']:.1f}, binary-IoU {figures['binary_iou']:.1f}"
        for words, figures in other_figures(results)
    ]


def mean_of_known(values: list[float | None]) -> float | None:
    """The mean of known values: a class may be absent from a run, or have no pixels."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
