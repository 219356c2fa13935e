"""An exported program is `forward` of the model, and needs nothing of this code."""

import re
import sys

import jax
import numpy as np
import pytest
from commands import run
from small_models import make_config, random_variables

from fsseg_jax import load
from fsseg_jax.errors import UserError
from fsseg_jax.export import export, main
from fsseg_jax.prediction import sharing

SIZE = 32
GIVEN = {"panet": [], "sst": ["--ways=2", "--shots=2"]}  # options

# Runs the code that the program has printed, with the arrays of one file, and writes its logits.
ALONE = """
import sys
import numpy as np

sys.modules["fsseg_jax"] = None  # importing it fails, as where it is not installed
for code, arrays, logits_file in zip(*[iter(sys.argv[1:])] * 3):
    given = dict(np.load(arrays))
    exec(open(code).read(), given)
    results = [given["logits"]]
    few = given["query_images"][:1]
    results.append(given["forward"](given["support_images"], given["support_labels"], few))
    np.savez(logits_file, *results)
assert not [name for name in sys.modules if name.startswith("fsseg_jax.")]
assert not [name for name in sys.modules if name.split(".")[0] in ("flax", "orbax", "optax")]
"""


def save_model(folder, method, ways=1, shots=1):
    config = make_config(method, ways=ways, shots=shots)
    sharing.save(folder, config, random_variables(config))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of each method the folder of its model, what was written and printed, and arrays for it."""
    results, folder = {}, tmp_path_factory.mktemp("export")
    for method, options in GIVEN.items():
        model = save_model(folder / method, method)
        out, arrays = folder / f"{method}.stablehlo", folder / f"{method}.npz"
        command = [f"--workdir={model}", f"--out={out}", *options]
        with pytest.MonkeyPatch.context() as patch:
            printed = []
            patch.setattr("builtins.print", printed.append)
            main([*command, "--config.compilation_cache=False"])
        ways, shots = (2, 2) if options else (1, 1)
        rng = np.random.default_rng(0)
        labels = rng.integers(0, ways + 1, (ways, shots, 4, 4), np.uint8).repeat(8, 2).repeat(8, 3)
        labels[..., :8, :8] = np.arange(1, ways + 1)[:, None, None, None]
        np.savez(
            arrays,
            support_images=rng.integers(0, 256, (ways, shots, SIZE, SIZE, 3), np.uint8),
            support_labels=labels,
            query_images=rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8),
        )
        results[method] = model, out, printed[0], arrays
    return results


def test_what_is_printed_runs_without_this_code_and_gives_the_logits_of_forward(
    exported, tmp_path, users_environment
):
    """In another folder, with one and with several queries."""
    arguments = []
    for method, (_, _, printed, arrays) in exported.items():
        lines = [line.removeprefix("    ") for line in printed.splitlines()]
        start = lines.index("import jax.export")
        code = tmp_path / f"{method}.py"
        code.write_text("\n".join(lines[start : lines.index("", start + 2)]))
        arguments += [code, arrays, tmp_path / f"{method}_logits.npz"]
    environment = {n: value for n, value in users_environment.items() if n != "PYTHONPATH"}
    run(sys.executable, "-c", ALONE, *arguments, cwd=tmp_path, env=environment)
    for method, (model, _, _, arrays) in exported.items():
        segmenter = load(model, devices=1)
        expected = np.asarray(segmenter.forward(**np.load(arrays)))
        assert np.ptp(expected) > 0.1
        with np.load(tmp_path / f"{method}_logits.npz") as file:
            several, one = file.values()
        assert several.dtype == np.float32
        assert several.shape == expected.shape
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(several, expected, atol=tolerance)
        np.testing.assert_allclose(one, expected[:1], atol=tolerance)


def test_what_it_takes_is_told(exported):
    for method, (ways, shots) in {"panet": (1, 1), "sst": (2, 2)}.items():
        _, out, printed, _ = exported[method]
        first, *_ = printed.splitlines()
        assert first.startswith(f"{out}: {ways}-way {shots}-shot {method} for cpu, cuda, tpu, ")
        size = float(re.search(r"([\d.]+) MiB", first)[1])
        assert size == pytest.approx(out.stat().st_size / 2**20, abs=0.06)
        assert f"support_images: uint8 ({ways}, {shots}, {SIZE}, {SIZE}, 3)" in printed
        assert f"float32 (queries, {SIZE}, {SIZE}, {ways + 1})" in printed


def test_platforms_and_shapes_are_those_asked_for(exported):
    program = export(load(exported["panet"][0]), ways=2, shots=3, platforms=["cuda"])
    assert program.platforms == ("cuda",)
    assert program.nr_devices == 1
    supports, labels, queries = program.in_avals
    assert supports.shape == (2, 3, SIZE, SIZE, 3)
    assert labels.shape == (2, 3, SIZE, SIZE)
    assert {array.dtype for array in program.in_avals} == {np.dtype(np.uint8)}
    assert jax.export.is_symbolic_dim(queries.shape[0])
    assert program.out_avals[0].shape == (queries.shape[0], SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out={model}/config.json/below"], "cannot be written"),
        (["--out={model}"], "is a folder: name a file."),
        (["--out=."], ". is a folder: name a file."),
        (["--ways=0"], "ways = 0: it must be an integer of at least 1"),
        (["--shots=-2"], "shots = -2: it must be an integer of at least 1"),
        ([f"--shots={10**30}"], f"shots = {10**30}: it must be at most 1000000"),
        (["--ways=300"], "support_images has 300 ways: there are at most 253"),
        (["--platforms=cpu,gpu"], "platforms: 'gpu' is unknown; use cpu, cuda"),
        (["--config.image_siez=64"], "did you mean --config.image_size"),
        (["--config.image_size"], "--config.image_size: expected --config.field=value"),
    ],
)
def test_wrong_options_are_told_and_nothing_is_written(exported, tmp_path, options, sentence):
    model = exported["panet"][0]
    command = [f"--workdir={model}", f"--out={tmp_path / 'new' / 'file'}"]
    options = [option.format(model=model) for option in options]
    with pytest.raises(UserError, match=re.escape(sentence)):
        main([*command, *options, "--config.compilation_cache=False"])
    assert not list(tmp_path.iterdir())


def test_ways_that_the_model_cannot_take_are_told(tmp_path):
    model = save_model(tmp_path, "mfnet", ways=2)
    with pytest.raises(UserError, match="3 ways with 1 shots: the parameters of this MFNet"):
        export(load(model), ways=3)


def test_a_fitted_model_takes_queries_alone(tmp_path, capsys):
    """The same as of the segmenter, up to its enlargement to each image's own size."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((2, SIZE, SIZE), np.uint8)
    masks[0, :16], masks[1, 8:] = 1, 2
    segmenter = load(save_model(tmp_path / "plain", "panet"), devices=1)
    segmenter.fit(images[:2], masks, classes=["cup", "jug"]).save_pretrained(tmp_path / "fitted")
    out = tmp_path / "program.stablehlo"
    main([f"--workdir={tmp_path / 'fitted'}", f"--out={out}", "--platforms=cpu"])
    printed = capsys.readouterr().out
    assert "panet of cup, jug for cpu" in printed
    assert "forward(query_images)" in printed
    assert "support_images" not in printed
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    logits = jax.jit(program.call)(images[2:])
    expected = segmenter.predict(images[2:], return_probabilities=True)
    for result, (_, probabilities) in zip(jax.nn.softmax(logits), expected, strict=True):
        np.testing.assert_allclose(result, probabilities, atol=1e-4)
    # Without views, and any rule of absence, its largest logits are the masks of `predict`.
    fitted = segmenter.fitted
    calibration = fitted.calibration._replace(thresholds=np.array([0.9, 0.3]))
    segmenter.fitted = fitted._replace(calibration=calibration)
    masks = np.asarray(export(segmenter, platforms=["cpu"]).call(images[2:]).argmax(axis=-1))
    assert (masks != np.asarray(logits).argmax(axis=-1)).mean() > 0.05
    assert (masks == np.stack(segmenter.predict(images[2:]))).mean() > 0.99
    assert "scales, mirror images and DenseCRF: the masks of predict may differ" in printed
    assert len(export(segmenter, shots=1, platforms=["cpu"]).in_avals) == 3
