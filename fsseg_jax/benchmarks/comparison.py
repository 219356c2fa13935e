"""Compares a method with its PyTorch forms: the same weights and episodes, timed by turns."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fsseg_jax.benchmarks import torch_reference
from fsseg_jax.benchmarks.measure import by_turns
from fsseg_jax.benchmarks.programs import milliseconds, table, timing, words
from fsseg_jax.benchmarks.workloads import Program
from fsseg_jax.episode import Episode
from fsseg_jax.models import default_options

# The only backbones that the reference has.
REFERENCE_BACKBONES = {"panet": "vgg16", "canet": "resnet50"}


class Form(NamedTuple):
    """One of several functions that compute the same."""

    name: str
    run: Callable[[], Any]


def share_with_torch() -> None:
    """Lets JAX and PyTorch take turns on the machine; call this before either is initialised.

    JAX would allocate most of a GPU's memory at once, and PyTorch's threads on a CPU would keep
    their cores busy between their turns.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def dtypes(config: ConfigDict) -> list[str]:
    """The dtypes to compare: `config.dtype`, and bfloat16 except on CPUs, which only emulate it."""
    more = [] if jax.default_backend() == "cpu" or config.dtype == "bfloat16" else ["bfloat16"]
    return [config.dtype, *more]


def torch_forms(config: ConfigDict, variables: Any, batch: Episode, action: str) -> list[Form]:
    """PyTorch's forms of a method, with the same weights on the same batch; prints why forms are
    missing.

    Args:
        config: configuration of our model; the tuned forms have its `dtypes`.
        batch: episodes as NumPy arrays.
        action: "predict" or "train_step".
    """
    method, platform = config.method, jax.default_backend()
    reasons = {
        "PyTorch is not installed": not torch_reference.available(),
        f"there is no reference of {method}": method not in torch_reference.METHODS,
        f"the reference is on {REFERENCE_BACKBONES.get(method)}": (
            config.backbone != REFERENCE_BACKBONES.get(method)
        ),
        "the reference has one way": config.ways != 1,
        "the reference has the published options": (
            config.model.to_dict() != default_options(method)
        ),
        f"PyTorch is not compared on a {platform}": platform not in ("cpu", "gpu"),
    }
    if reason := next((text for text, holds in reasons.items() if holds), None):
        print(f"torch, {method}: no comparison, as {reason}")
        return []
    device = "cuda" if platform == "gpu" else "cpu"
    options = {"image_size": config.image_size, "shots": config.shots, "device": device}
    weights = jax.device_get(variables)

    def form(name: str, **more: Any) -> Form:
        reference = torch_reference.build(method, **options, **more)
        reference.load(weights)
        prepared = reference.prepare(batch)

        def run() -> None:
            getattr(reference, action)(prepared)
            reference.synchronize()

        run()  # compiles the form if it is a compiled one
        return Form(name, run)

    wanted = {"torch, straightforward, float32": {"tuned": False}}
    for dtype in dtypes(config):
        tuned = {"tuned": True, "dtype": dtype}
        wanted[f"torch, tuned, {dtype}"] = tuned
        wanted[f"torch, tuned, {dtype}, compiled"] = {**tuned, "compile": True}
    forms = []
    for name, more in wanted.items():
        try:
            forms.append(form(name, **more))
        except Exception as error:  # the machine may lack a compiler, or memory
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"{name}: failed and left out ({type(error).__name__}: {reason})")
    return forms


def beside_torch(
    config: ConfigDict,
    variables: Any,
    batch: Episode,
    action: str,
    compiled: Callable[[ConfigDict], Program],
    repeats: int,
    steps: int = 1,
) -> list[dict[str, Any]] | None:
    """Prints a comparison of our forms with PyTorch's, by turns; returns the rows of the table, or
    None without PyTorch.

    Args:
        config, variables, batch, action: see `torch_forms`.
        compiled: our program with a configuration.
        steps: number of steps in a run of our program.
    """
    others = torch_forms(config, variables, batch, action)
    if not others:
        return None
    ours = []
    for dtype in dtypes(config):
        changed = config.copy_and_resolve_references()
        changed.dtype = dtype
        ours.append(Form(f"ours {dtype}", compiled(changed).run))
    forms, size = [*ours, *others], len(batch.query_index)
    seconds = by_turns([form.run for form in forms], repeats, 2, "by turns")
    seconds[:, : len(ours)] /= steps
    rows = []
    for form, times in zip(forms, seconds.T, strict=True):
        own = zip(ours, seconds.T, strict=False)
        ratios = {form.name: float(np.median(times / theirs)) for form, theirs in own}
        rows.append({"form": form.name, **timing(times), "times_ours": ratios})
    headings = ["", "ms", "episodes/s", *(f"x {form.name}" for form in ours)]
    cells = [
        [
            row["form"],
            milliseconds(row),
            f"{size / row['seconds']:.2f}",
            *(f"{ratio:.3f}" for ratio in row["times_ours"].values()),
        ]
        for row in rows
    ]
    what = "whole episodes" if action == "predict" else "a training step"
    print(f"{what}, {words(config)}, batches of {size}, by turns\n{table(headings, cells)}")
    return rows
