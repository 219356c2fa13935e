"""The notebooks as a user runs them, from top to bottom, with small settings."""

import importlib.util
import json
import os
import pathlib
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"anatomy": 5, "own_photos": 7, "panet_table1": 2}  # that each shows


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs a notebook in `tmp_path`, and returns what expressions are afterwards
    (JSON), and how many pictures there are."""
    monkeypatch.setenv("FSSEG_SMALL", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # As conftest has it, but with one device, as most users have.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path.rstrip(os.pathsep))

    def run(name, **expressions):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        parts = ", ".join(f"{key!r}: {value}" for key, value in expressions.items())
        end = f"import json, sys\nprint(json.dumps({{{parts}}}))"
        notebook.cells.append(nbformat.v4.new_code_cell(end))
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
        outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        values = json.loads(notebook.cells[-1].outputs[0].text)
        return values, sum("image/png" in out.get("data", {}) for out in outputs)

    return run


def test_own_photos_trains_segments_and_saves(execute, tmp_path):
    found, pictures = execute(
        "own_photos",
        classes="list(source.classes)",
        losses="losses",
        steps="config.train.steps",
        held_out="[list(results['per_class']) for results in (before, after)]",
        scores="[before['mean_iou'], after['mean_iou']]",
        sizes="[p.shape == q.image.shape[:2] for p, q in zip(predictions, queries)]",
        ious="ious + ious_by_box",
        several="sorted({int(n) for mask in several for n in np.unique(mask)})",
    )
    folder = tmp_path / "own_photos"
    made = [path for path in (folder / "made").iterdir() if path.is_dir()]
    assert found["classes"] == sorted(path.name for path in made)
    assert all(len(list(path.glob("*.jpg"))) == len(list(path.glob("*.png"))) == 6 for path in made)

    assert [step for step, _ in found["losses"]] == list(range(1, found["steps"] + 1))
    assert np.isfinite(found["losses"]).all()
    assert found["held_out"] == [found["classes"][:2]] * 2  # a third of six
    assert np.all((np.array(found["scores"]) >= 0) & (np.array(found["scores"]) <= 100))
    assert found["sizes"] == [True] * 5
    assert len(found["ious"]) == 5 + 4
    assert np.all((np.array(found["ious"]) >= 0) & (np.array(found["ious"]) <= 100))
    assert set(found["several"]) <= {0, 1, 2, 3}
    assert (folder / "run" / "evaluation" / "report.html").is_file()
    for file in ("config.json", "model.safetensors", "README.md"):
        assert (folder / "model" / file).is_file()
    assert pictures == PICTURES["own_photos"]


def test_table_is_printed_with_what_is_missing(execute, tmp_path):
    found, pictures = execute(
        "panet_table1",
        # A process that holds a GPU or a TPU would leave none to the programs.
        computes="bool(sys.modules['jax']._src.xla_bridge.backends_are_initialized())",
        reports="len(reports)",
        table="table",
    )
    assert not found["computes"]
    ours = {
        (row["label"], figure["setting"]): figure["ours"]
        for row in found["table"]["rows"]
        for figure in row["figures"]
    }
    untrained = [*ours["PANet-init", "1-way 1-shot"].values()]
    assert None not in [*untrained, *ours["PANet-init", "1-way 5-shot"].values()]
    assert untrained[-1] == pytest.approx(np.mean(untrained[:-1]))
    trained = ours["PANet", "1-way 1-shot"]
    assert [fold for fold, value in trained.items() if value is not None] == ["0"]
    assert set(ours["PANet", "1-way 5-shot"].values()) == {None}
    assert len(found["table"]["missing"]) == 3 + 4
    assert found["reports"] == 8 + 1
    text = (tmp_path / "runs" / "tables" / "panet-1" / "table.txt").read_text()
    # The star says that its training or its images are not those of the paper.
    assert re.search(rf"{trained['0']:.1f}\* +missing +missing +missing +-", text)
    assert pictures == PICTURES["panet_table1"]


def test_anatomy_measures_both_methods(execute):
    found, pictures = execute(
        "anatomy",
        rates="rates.tolist()",
        mean="{name: values.tolist() for name, values in mean.items()}",
        single="found['loss'].tolist()",
        gradient="[float(found['gradient'].min()), float(found['gradient'].max())]",
        ious="refined['iou'].tolist()",
        changed="changed.tolist()",
    )
    rates, mean = found["rates"], {name: np.array(x) for name, x in found["mean"].items()}
    assert rates[0] == 0
    assert mean["shift"][0] == 0
    assert (np.diff(mean["shift"]) > 0).all()  # a larger rate moves the prototype further
    single = np.array(found["single"])
    assert (single[:, rates.index(1)] < single[:, 0]).all()  # a small step lowers every loss
    low, high = found["gradient"]
    assert 0 <= low < high
    ious = np.array(found["ious"])
    assert ious.shape == (8, 5)
    assert ((ious >= 0) & (ious <= 100)).all()
    assert len(found["changed"]) == 4
    assert pictures == PICTURES["anatomy"]


# ----------------------------------------------------------------------------- the files


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_valid_and_show_what_they_do(path):
    """Their outputs are those of one run from top to bottom, by `.ci/notebooks.py`."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]
    shown = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not re.search(r"Traceback|/tmp/|/home/|/root/", shown)
    assert path.stat().st_size < 3 * 2**20


def test_all_notebooks_are_tested():
    assert {path.stem for path in NOTEBOOKS} == {*PICTURES}


@pytest.mark.parametrize("extra", ["", "[tpu]"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_published_package_is_installed_only_where_there_is_none(path, extra, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell.source for cell in notebook.cells if "EXTRA = " in cell.source)
    assert 'EXTRA = ""' in cell
    code = TransformerManager().transform_cell(cell.replace('EXTRA = ""', f"EXTRA = {extra!r}"))
    called = []

    def install():
        """Runs the cell where IPython notes its commands; returns what they were."""
        called.clear()
        names = {"get_ipython": lambda: SimpleNamespace(run_line_magic=note)}

        def note(command, line):
            called.append((command, line.format(**names)))

        exec(code, names)
        return called

    assert install() == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install() == [("pip", f'install --quiet "fsseg_jax{extra}"')]


# ----------------------------------------------------------------------------- the comparison


def shown(text="", pictures=0):
    """A notebook of one cell that shows this."""
    v4 = nbformat.v4
    outputs = [v4.new_output("display_data", {"image/png": ""}) for _ in range(pictures)]
    outputs.append(v4.new_output("stream", name="stdout", text=text))
    return v4.new_notebook(cells=[v4.new_code_cell("", outputs=outputs)])


def test_ci_tells_figures_and_pictures_that_are_others():
    spec = importlib.util.spec_from_file_location("ci_notebooks", ROOT / ".ci" / "notebooks.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    before = shown("mean-IoU 50.0 on base classes, in 3 s\nquery iou 20.5", pictures=2)
    same = shown("mean-IoU 57.5 on base classes, in 9 s\nquery iou 12.0", pictures=2)
    assert program.differences(before, same, 10.0) == []
    for other in (
        shown("mean-IoU 62.0\nquery iou 20.5", 2),
        shown("mean-IoU 50.0", 2),
        shown("mean-IoU 50.0\nquery iou 20.5", 1),
    ):
        assert len(program.differences(before, other, 10.0)) == 1
    assert {*program.SETTINGS} == {*PICTURES}
