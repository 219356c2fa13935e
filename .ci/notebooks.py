"""Runs the notebooks and compares them with the outputs they are committed with: .ci/notebooks.py

--write replaces the outputs instead. Every picture must be there again, and figures that are called
IoU may differ by `TOLERANCE` points, as versions of XLA and processors train a little differently.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
# What each runs with: here are no weights from the hub, and no day on a GPU.
SETTINGS = {
    "anatomy": {},
    "own_photos": {"FSSEG_WEIGHTS": ""},
    "panet_table1": {"FSSEG_SMALL": "1"},
}
TOLERANCE = {"anatomy": 10.0, "own_photos": 10.0, "panet_table1": 100.0}  # after two steps: any
FIGURE = re.compile(r"(?:mean-IoU|binary-IoU|support iou|query iou) (\d+(?:\.\d+)?)")


def run(name: str) -> nbformat.NotebookNode:
    """A notebook with its outputs of now, run in a folder of its own."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        os.environ.update(PYTHONPATH=path, JAX_PLATFORMS="cpu", **SETTINGS[name])
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources)
        try:
            client.execute()
        finally:
            for variable in SETTINGS[name]:
                del os.environ[variable]
        for cell in notebook.cells:
            _settle(cell, folder)
    return notebook


def _settle(cell: nbformat.NotebookNode, folder: str) -> None:
    """Removes from a cell what is of this run alone: times, and where it ran. Pictures get 256
    colours, a third of the bytes."""
    cell.metadata.pop("execution", None)
    texts = {}
    for output in cell.get("outputs", []):
        if output.output_type == "stream":  # one output each, as a person sees them
            texts[output.name] = texts.get(output.name, "") + output.text
    kept = []
    for output in cell.get("outputs", []):
        if output.output_type != "stream":
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
            kept.append(output)
        elif output.name == "stdout" and output.name in texts:
            text = texts.pop(output.name).replace(f"{pathlib.Path(folder).resolve()}/", "")
            output.text = text.replace(f"{sys.executable}", "python")
            kept.append(output)
    if "outputs" in cell:
        cell.outputs = kept


def _smaller(picture: str) -> str:
    """A PNG with a palette, in base64 as a notebook has it."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    file = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def pictures(cell: nbformat.NotebookNode) -> int:
    """How many pictures a cell shows."""
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def figures(cell: nbformat.NotebookNode) -> list[float]:
    """The IoUs that a cell prints, in percent."""
    texts = [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
    return [float(figure) for figure in FIGURE.findall("".join(texts))]


def differences(
    before: nbformat.NotebookNode, after: nbformat.NotebookNode, tolerance: float
) -> list[str]:
    """What differs more than it may, a line each."""
    found = []
    for number, (old, new) in enumerate(zip(before.cells, after.cells, strict=True)):
        if pictures(old) != pictures(new):
            found.append(f"cell {number}: {pictures(new)} pictures instead of {pictures(old)}")
        was, now = figures(old), figures(new)
        if len(was) != len(now) or any(
            abs(x - y) > tolerance for x, y in zip(was, now, strict=True)
        ):
            found.append(f"cell {number}: IoU {now} instead of {was}")
    return found


def main() -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SETTINGS], help="all by default")
    parser.add_argument("--write", action="store_true", help="replace the committed outputs")
    arguments = parser.parse_args()
    wrong = []
    for name in arguments.names or SETTINGS:
        began = time.monotonic()
        path = ROOT / "notebooks" / f"{name}.ipynb"
        notebook = run(name)
        print(f"{name}: ran in {time.monotonic() - began:.0f} s", flush=True)
        if arguments.write:
            nbformat.write(notebook, path)
        else:
            before = nbformat.read(path, as_version=4)
            wrong += [f"{name}, {line}" for line in differences(before, notebook, TOLERANCE[name])]
    print("\n".join(wrong) or "as committed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
