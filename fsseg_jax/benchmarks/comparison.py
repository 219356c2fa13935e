"""A method here beside PyTorch's forms of it: the same weights and episodes, by turns."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fsseg_jax.benchmarks import torch_reference
from fsseg_jax.benchmarks.measure import by_turns
from fsseg_jax.benchmarks.programs import milliseconds, table, timing
from fsseg_jax.episode import Episode
from fsseg_jax.models import default_options

# The reference has no other backbones.
REFERENCE_BACKBONES = {"panet": "vgg16", "canet": "resnet50"}


class Form(NamedTuple):
    """A function beside others of the same purpose."""

    name: str
    run: Callable[[], Any]


def share_with_torch() -> None:
    """Lets both sides have the machine in turn; call before anything else of JAX and PyTorch.

    JAX would take most of a GPU's memory at once, and PyTorch's threads on a CPU would keep their
    cores busy while they wait for its next turn.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def dtypes(config: ConfigDict) -> list[str]:
    """Those that are compared: `config.dtype`, and bfloat16 but on CPUs, which only imitate it."""
    more = [] if jax.default_backend() == "cpu" or config.dtype == "bfloat16" else ["bfloat16"]
    return [config.dtype, *more]


def torch_forms(config: ConfigDict, variables: Any, batch: Episode, action: str) -> list[Form]:
    """PyTorch's forms of a method with the same weights on the same batch; says what is amiss.

    Args:
        config: of ours; the tuned forms have its `dtypes`.
        variables: of ours.
        batch: of NumPy arrays.
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
        f"PyTorch is not compared with on a {platform}": platform not in ("cpu", "gpu"),
    }
    if reason := next((words for words, holds in reasons.items() if holds), None):
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

        run()  # compiles, where that is asked for
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
        except Exception as error:  # what a compiler may lack on this machine, or memory
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"{name}: failed, left out ({type(error).__name__}: {reason})")
    return forms


def compare(
    forms: Sequence[Form], ours: int, episodes: int, repeats: int, steps: Sequence[int]
) -> tuple[str, list[dict[str, Any]]]:
    """Times forms of one thing by turns: a table and its rows.

    Args:
        forms: those of this library first.
        ours: how many those are.
        episodes: of a call of one step.
        repeats: how often each is timed.
        steps: of a call, by form.
    """
    seconds = by_turns([form.run for form in forms], repeats, 2, "by turns") / np.array(steps)
    rows = []
    for column, form in enumerate(forms):
        times = seconds[:, column]
        ratios = {forms[own].name: float(np.median(times / seconds[:, own])) for own in range(ours)}
        rows.append({"form": form.name, **timing(times), "times_ours": ratios})
    headings = ["", "ms", "episodes/s", *(f"x {form.name}" for form in forms[:ours])]
    cells = [
        [
            row["form"],
            milliseconds(row),
            f"{episodes / row['seconds']:.2f}",
            *(f"{ratio:.3f}" for ratio in row["times_ours"].values()),
        ]
        for row in rows
    ]
    return table(headings, cells), rows
