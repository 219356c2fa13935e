"""The benchmark programs print and write what they measure."""

import functools
import json
import sys
import types

import jax
import numpy as np
import pytest
from helpers import message_of

from fsseg_jax.backbones.vit import VITS
from fsseg_jax.benchmarks import (
    comparison,
    evaluate,
    features,
    measure,
    predict,
    programs,
    torch_reference,
    train,
    workloads,
)
from fsseg_jax.prediction.forward import encode_supports

SMALL = ("backbone=small", "image_size=40", "devices=1", "data.shapes.val=48")


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Peaks are measured with small arrays."""
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "COPY", {"cpu": 2**20})
    monkeypatch.setattr(programs, "MADE", 48)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """A function that runs a program, and gives its lines and what it writes."""

    def call(program, *arguments, overrides=()):
        path = tmp_path / "results.json"
        fields = [f"--config.{field}" for field in (*SMALL, *overrides)]
        command = [program.__name__, f"--json={path}", "--repeats=2", *arguments, *fields]
        monkeypatch.setattr(sys, "argv", command)
        program.main()
        return capsys.readouterr().out.splitlines(), json.loads(path.read_text())

    return call


def cells(lines, first):
    """The cells of the lines that begin with a word, of more than one column."""
    return [line.split() for line in lines if line.split()[:1] == [first] and "  " in line]


# ----------------------------------------------------------------------------- train


def test_train_measures_a_step_and_what_pipelines_add(run, monkeypatch):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)  # no TensorFlow
    lines, results = run(train, "--methods=panet", "--layers")
    assert lines[0].startswith("devices: 1 x cpu")
    assert lines[1].startswith("peak of each: ")
    assert lines[2] == "panet: small, 40 px, 1-way 1-shot, float32, 1 steps a dispatch"
    assert max(map(len, lines)) <= 100
    [printed] = cells(lines, "panet")
    [row] = results["steps"]
    assert printed[:2] == ["panet", "1"]
    assert float(printed[2]) == pytest.approx(1e3 * row["seconds"], rel=0.01)
    assert row["least"] <= row["seconds"] <= row["greatest"]
    assert row["episodes_per_second"] == pytest.approx(1 / row["seconds"])
    assert row["teraflops"] == pytest.approx(row["flops"] / row["seconds"] / 1e12)
    peak = results["peaks"]["float32"]
    assert row["of_peak"] == pytest.approx(row["flops"] / row["seconds"] / peak["flops"]["float32"])
    assert row["of_bandwidth"] == pytest.approx(row["bytes"] / row["seconds"] / peak["bandwidth"])
    assert row["of_bound"] == pytest.approx(row["bound_seconds"] / row["seconds"])
    assert row["memory"] > 0
    ratios = row["in_times_of_constant"]
    assert (set(ratios), ratios["constant"]) == ({"constant", "device"}, 1)
    listed = [line for line in lines if line.startswith(("conv ", "dot "))]
    assert 2 <= len(listed) <= train.LAYERS
    assert results["configs"]["panet"]["image_size"] == 40


def quick(config, pipeline, items, mesh):
    """In place of a compiled program, which takes long to make."""
    return workloads.Program(lambda: None, types.SimpleNamespace(memory_analysis=lambda: None))


def test_batches_that_do_not_fit_are_told_and_the_others_measured(run, monkeypatch):
    def limited(config, *arguments):
        if config.train.batch_size > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return quick(config, *arguments)

    monkeypatch.setattr(workloads, "training", limited)
    lines, results = run(train, "--methods=panet", "--batch_sizes=2,1")
    two, one = cells(lines, "panet")
    assert two[:5] == ["panet", "2", "out", "of", "memory"]
    assert float(one[-2]) > 0
    assert one[-3] == "-"  # the compiler does not tell of memory
    assert [row.get("out_of_memory", False) for row in results["steps"]] == [True, False]


def test_figures_are_of_one_step_of_the_batch(run, monkeypatch):
    monkeypatch.setattr(workloads, "training", quick)
    monkeypatch.setattr(train, "by_turns", lambda tasks, *_: np.full((2, len(tasks)), 5.0))
    fields = ["train.steps_per_dispatch=50"]
    _, results = run(train, "--methods=panet", "--batch_sizes=1,2", overrides=fields)
    one, two = results["steps"]
    assert one["seconds"] == two["seconds"] == 0.1
    assert (one["episodes_per_second"], two["episodes_per_second"]) == (10, 20)
    assert 1.8 < two["flops"] / one["flops"] < 2.1
    assert one["teraflops"] == pytest.approx(one["flops"] / 0.1 / 1e12)
    assert {"device"} < set(one["in_times_of_constant"])
    # Pipelines make the batches of the config.
    assert two["in_times_of_constant"] == {"constant": 1}


def test_other_errors_of_a_step_are_not_hidden(run, monkeypatch):
    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(workloads, "training", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        run(train, "--methods=panet")


# ----------------------------------------------------------------------------- predict


def test_predict_measures_episodes_and_queries(run):
    lines, results = run(predict, "--methods=panet", "--batch_sizes=1,3", overrides=["shots=2"])
    rows = results["predictions"]
    names = [(row["what"], row["batch_size"]) for row in rows]
    assert names == [
        ("encode supports", 2),
        *(("episodes", 1), ("queries", 1), ("episodes", 3), ("queries", 3)),
    ]
    assert len(cells(lines, "panet")) == len(rows)
    for row in rows:
        assert row["per_second"] == pytest.approx(row["batch_size"] / row["seconds"])
    supports, episode, query, *_ = (row["flops"] for row in rows)
    assert episode == pytest.approx(supports + query, rel=0.1)
    assert max(map(len, lines)) <= 100


def test_queries_with_encoded_supports_are_segmented_as_in_whole_episodes():
    config = programs.published("panet")
    config.backbone, config.image_size, config.ways, config.shots = "small", 40, 2, 2
    model = predict.create_model(config)
    variables = predict.init_variables(model, jax.random.key(0), 2, 2)
    batch = workloads.made_episodes(config, 1)
    whole = jax.jit(workloads.prediction(model))(variables, batch)
    images = batch.support_image[0]
    features = jax.jit(encode_supports, static_argnums=0)(model, variables, images)
    segment = jax.jit(predict.segment_queries(model))
    parts = segment(variables, features, batch.support_label[0], batch.query_image)
    assert (np.asarray(whole) == np.asarray(parts)).mean() > 0.999
    assert len(np.unique(whole)) > 1


# ----------------------------------------------------------------------------- evaluate


def test_evaluate_measures_both_ways_and_growth(run):
    lines, results = run(
        evaluate,
        *("--methods=panet", "--shots=1,2"),
        overrides=["eval.runs=2", "eval.episodes=8", "eval.batch_size=4"],
    )
    growth, against = results["growth"], results["against_encoding_anew"]
    assert [row["shots"] for row in against] == [1, 2]
    for row in against:
        of_shots = [part for part in growth if part["shots"] == row["shots"]]
        assert {4, 8, 16} <= {part["episodes"] for part in of_shots}
        last = of_shots[-1]
        assert (last["episodes"], row["episodes"]) == (16, 16)
        assert min(part["photographs"] for part in of_shots) <= (last["photographs"] + 4) / 2
        once = last["encoding"]["seconds"] + last["scoring"]["seconds"]
        assert row["seconds_once"] == pytest.approx(once)
        assert row["seconds_anew"] == pytest.approx(16 * row["seconds_whole_episode"])
        assert row["ratio"] == pytest.approx(row["seconds_anew"] / row["seconds_once"])
        assert row["timed"] == 4
    printed = cells(lines, "panet")
    assert len(printed) == len(growth) + len(against)
    assert [float(row[-1]) for row in printed[-2:]] == pytest.approx(
        [row["ratio"] for row in against], abs=0.01
    )
    assert max(map(len, lines)) <= 100


def test_episodes_are_read_as_they_are_listed(make_source):
    source = make_source()
    ids = evaluate.EpisodeIds(
        classes=np.array([[2], [3]]),
        supports=np.array([[[0, 4]], [[5, 6]]]),
        query=np.array([1, 0]),
        query_index=np.array([0, 1]),
    )
    batch = evaluate.read(source, ids, 32)
    assert batch.support_image.shape == (2, 1, 2, 32, 32, 3)
    assert batch.query_label.shape == (2, 32, 32)
    image, label = evaluate.read_square(source, 6, 32)
    np.testing.assert_array_equal(batch.support_image[1, 0, 1], image)
    expected = np.where(label == 255, 255, label == 3)
    np.testing.assert_array_equal(batch.support_label[1, 0, 1], expected)


# ----------------------------------------------------------------------------- beside PyTorch


class FakeReference:
    """Stands for `torch_reference.Reference`, whose optimizer takes long to import."""

    def __init__(self, method, **options):
        self.options, self.calls = {"method": method, **options}, []

    def load(self, variables):
        assert set(variables) == {"params"}
        assert isinstance(jax.tree.leaves(variables)[0], np.ndarray)

    def prepare(self, batch):
        assert isinstance(batch.query_image, np.ndarray)
        return len(batch.query_index)

    def predict(self, prepared):
        assert prepared == 2
        self.calls.append("predict")

    def train_step(self, prepared):
        assert prepared == 2
        self.calls.append("train_step")

    def synchronize(self):
        self.calls.append("synchronize")


@pytest.fixture
def references(monkeypatch):
    """PyTorch's forms that were built; those with `compile` fail."""
    built = []

    def build(method, *, compile=False, **options):
        if compile:
            raise RuntimeError("no compiler here\nlong explanation")
        built.append(FakeReference(method, **options))
        return built[-1]

    monkeypatch.setattr(torch_reference, "available", lambda: True)
    monkeypatch.setattr(torch_reference, "build", build)
    monkeypatch.setattr(comparison, "REFERENCE_BACKBONES", {"panet": "small"})
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "as it is")  # what a program sets would outlive the test
    return built


@pytest.mark.parametrize(("program", "action"), [(train, "train_step"), (predict, "predict")])
def test_forms_in_pytorch_are_timed_by_turns(run, references, monkeypatch, program, action):
    monkeypatch.setattr(workloads, "training", quick)
    lines, results = run(program, "--methods=panet", "--batch_sizes=2", "--torch")
    [rows] = results["torch"].values()
    assert [row["form"] for row in rows] == [
        "ours float32",
        "torch, straightforward, float32",
        "torch, tuned, float32",
    ]
    assert rows[0]["times_ours"] == {"ours float32": 1.0}
    assert all(row["seconds"] > 0 for row in rows)
    failed = "torch, tuned, float32, compiled: failed and left out (RuntimeError: no compiler here)"
    assert failed in lines
    first, second = references
    assert (first.options["tuned"], second.options["tuned"]) == (False, True)
    assert first.options["device"] == "cpu"
    # Once before, two rounds of warm-up and the two that are counted.
    assert first.calls == second.calls == [action, "synchronize"] * 5


@pytest.mark.parametrize(
    ("method", "field", "reason"),
    [
        ("panet", "ways=2", "the reference has one way"),
        ("panet", "model.freeze_backbone=True", "the reference has the published options"),
        ("panet", "backbone=resnet50", "the reference is on small"),
        ("sst", "seed=0", "there is no reference of sst"),
    ],
)
def test_what_has_no_reference_is_told(references, capsys, method, field, reason):
    config = programs.override(programs.published(method), [f"--config.{field}"])
    if not field.startswith("backbone="):
        config.backbone = "small"
    assert comparison.torch_forms(config, {}, None, "predict") == []
    assert capsys.readouterr().out == f"torch, {method}: no comparison, as {reason}\n"


def test_absent_pytorch_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch_reference, "available", lambda: False)
    assert comparison.torch_forms(programs.published("panet"), {}, None, "predict") == []
    assert "no comparison, as PyTorch is not installed" in capsys.readouterr().out


# ----------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("program", "arguments", "sentence"),
    [
        (train, ["--methods=panet,unet"], "--methods = unet: choose among panet, canet"),
        (train, ["--batch_sizes=1,x"], "--batch_sizes = 1,x: expected integers above 0"),
        (train, ["--repeats=0"], "--repeats = 0: expected integers above 0"),
        (train, ["--json=missing/x.json"], "--json = missing/x.json: there is no such folder"),
        (predict, ["--config=missing.py"], "--config = missing.py: there is no such file"),
        (evaluate, ["--shots=0"], "--shots = 0: expected integers above 0"),
        (predict, ["--config.image_sise=4"], "did you mean --config.image_size"),
        (predict, ["--lairs"], "lairs"),
        (evaluate, ["--config=x.py", "--methods=sst"], "leave --methods out"),
    ],
)
def test_wrong_options_are_told_in_one_sentence(monkeypatch, program, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    assert sentence in message_of(program.main)


def test_columns_are_aligned():
    text = programs.table(["", "count"], [["a", "1"], ["longer", "1000000"]])
    assert text.splitlines() == ["          count", "a             1", "longer  1000000"]


def test_a_constant_batch_is_drawn_anew_in_each_step_of_a_loop(find_operations):
    config = programs.published("panet")
    config.backbone, config.image_size = "small", 40
    batch = workloads.made_episodes(config, 3)
    assert batch.query_image.shape == (3, 40, 40, 3)
    assert len(np.unique(batch.support_label)) >= 2
    pipeline = workloads.constant(batch, train.make_mesh(1))
    jaxpr = jax.make_jaxpr(pipeline.draw)(pipeline.feed(1), 0, 5).jaxpr
    [barrier] = find_operations(jaxpr, "optimization_barrier")
    assert jaxpr.invars[-1] in barrier.invars  # the number of the step


# ----------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("name", "installed"),
    [("dinov2_s", False), ("dinov2_s", True), ("dinov2_s_reg", True), ("dinov3_s_plus", True)],
)
def test_features_are_measured_beside_those_of_transformers(run, monkeypatch, name, installed):
    if installed:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    else:
        find = features.importlib.util.find_spec
        monkeypatch.setattr(
            features.importlib.util, "find_spec", lambda x: None if x == "transformers" else find(x)
        )
    whole = VITS[name]
    # The channels of a gated MLP are two thirds of four times the width, rounded up to 8.
    small = functools.partial(whole, width=24, heads=2, depth=2, hidden=96, grid=whole().grid // 9)
    monkeypatch.setitem(VITS, name, small)
    size = 2 * whole().patch
    lines, results = run(features, f"--backbones={name}", f"--size={size}")
    (row,) = results["features"]
    ((_, side, *_),) = cells(lines, name)
    assert int(side) == size
    assert row["seconds"] > 0
    assert ("ratio" in row) == installed
    assert row.get("difference", 0) < 1e-4


def test_features_of_other_backbones_or_parts_of_patches_are_refused(run):
    assert "--backbones = vgg16: choose among" in message_of(run, features, "--backbones=vgg16")
    assert "choose a multiple of dinov2_s's patch, 14" in message_of(run, features, "--size=100")
