"""Our Vision Transformers are those of DINOv2 and DINOv3, as transformers and PyTorch have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, draw_values, is_close, random
from published_vits import (
    DEPTH,
    MODELS,
    OURS,
    SIDE,
    as_meta_does,
    drawn_image,
    features,
    transformers_model,
)

from fsseg_jax.backbones import create_backbone
from fsseg_jax.backbones.extent import extent
from fsseg_jax.backbones.pretrained import load_pretrained
from fsseg_jax.backbones.vit import cubic_matrix, interpolate, rotations


def variables_of(module, stages=(), seed=0):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(module.init, stages=stages)
    return draw_values(jax.eval_shape(init, jax.random.key(0), image), seed)


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(module, variables, image, stages=()):
    return module.apply(variables, image, stages=stages)


# ----------------------------------------------------------------------------- PyTorch's


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers(torch, tmp_path, name):
    """Through a file of transformers' layout, at the grid's size and three others."""
    pytest.importorskip("transformers")
    model, ours = transformers_model(torch, name), MODELS[name]()
    model.save_pretrained(tmp_path)
    if name.startswith("dinov2") and not name.endswith("registers"):
        as_meta_does(torch, model)
    init = functools.partial(ours.init, stages=(1, DEPTH))
    shapes = jax.eval_shape(init, jax.random.key(0), drawn_image(32, 32))
    variables = load_pretrained(str(tmp_path / "model.safetensors"), shapes)
    for rows, columns in ((SIDE, SIDE), (2, 9), (7, 4)):
        image = drawn_image(ours.patch * rows, ours.patch * columns)
        for block, result in zip(
            (1, DEPTH), encode(ours, variables, image, (1, DEPTH)), strict=True
        ):
            assert result.shape == (2, rows, columns, ours.width)
            assert_close(result, features(torch, model, image, block), 1e-4)


def test_without_the_offset_it_is_transformers_own_interpolation(torch, tmp_path):
    pytest.importorskip("transformers")
    model, ours = transformers_model(torch, "dinov2"), MODELS["dinov2"](offset=0.0)
    model.save_pretrained(tmp_path)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), drawn_image(32, 32))
    variables = load_pretrained(str(tmp_path / "model.safetensors"), shapes)
    image = drawn_image(28, 126)
    assert_close(encode(ours, variables, image)[0], features(torch, model, image, DEPTH), 1e-4)
    offset = encode(MODELS["dinov2"](), variables, image)[0]
    assert not is_close(offset, features(torch, model, image, DEPTH), 1e-3)  # 0.1 does matter


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (False, 0.0), (True, 0.0)])
@pytest.mark.parametrize("size", [(16, 23), (37, 60), (80, 5), (37, 37)])
def test_positions_are_interpolated_as_in_pytorch(torch, antialias, offset, size):
    learnt = random(37, 37, 3)
    how = {"size": size}
    if offset:
        how = {"scale_factor": tuple((n + offset) / 37 for n in size)}
    expected = torch.nn.functional.interpolate(
        torch.tensor(learnt).permute(2, 0, 1)[None], mode="bicubic", antialias=antialias, **how
    )[0].permute(1, 2, 0)
    if size == (37, 37):  # Meta leaves these as they are
        expected = learnt
    assert_close(interpolate(jnp.asarray(learnt), size, size, antialias, offset), expected, 1e-5)


# ----------------------------------------------------------------------------- by themselves


def test_rows_of_interpolation_sum_to_one_for_any_lengths():
    for n_in, n_out, antialias in ((37, 32, True), (5, 90, False), (37, 4, False), (2, 2, True)):
        matrix = cubic_matrix(n_in, n_out, n_out, antialias, 0.0)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_rotations_turn_each_axis_by_its_own_coordinate():
    """Angles by a loop over patches; the class token and registers do not turn."""
    cosine, sine = rotations((3, 2), (3, 2), 8, before=5)
    np.testing.assert_array_equal(cosine[:5], 1)
    np.testing.assert_array_equal(sine[:5], 0)
    for row in range(3):
        for column in range(2):
            y, x = (row + 0.5) / 3 * 2 - 1, (column + 0.5) / 2 * 2 - 1
            angles = 2 * np.pi * np.array([y, y / 10, x, x / 10] * 2)
            np.testing.assert_allclose(cosine[5 + 2 * row + column], np.cos(angles), atol=1e-6)
            np.testing.assert_allclose(sine[5 + 2 * row + column], np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("name", ["dinov2, registers", "dinov3"])
def test_other_sizes_are_padded_and_cut_again(name):
    """A position of the result is where an image, not its padding, has that part of its length."""
    module = MODELS[name]()
    variables, patch = variables_of(module), module.patch
    height, width = 3 * patch + 2, 5 * patch - 1
    image = drawn_image(height, width)
    padded = np.zeros((2, 4 * patch, 5 * patch, 3), np.float32)
    padded[:, :height, :width] = image
    whole = np.asarray(encode(module, variables, padded)[0])

    def cut(x, axis, pixels):
        count = x.shape[axis]
        at = (np.arange(count) + 0.5) * pixels / count / patch - 0.5
        return np.apply_along_axis(lambda row: np.interp(at, np.arange(count), row), axis, x)

    expected = cut(cut(whole, 1, height), 2, width)
    assert_close(encode(module, variables, image)[0], expected, 1e-5)


@pytest.mark.parametrize("name", ["dinov2", "dinov2, registers", "dinov3"])
@pytest.mark.parametrize("shape", [(70, 70), (50, 93)])
def test_image_on_a_canvas_is_seen_as_if_it_were_alone(name, shape):
    module = MODELS[name]()
    variables, image = variables_of(module), drawn_image(*shape, count=1)
    canvas = np.full((1, 96, 160, 3), 7, np.float32)
    canvas[:, : shape[0], : shape[1]] = image

    @jax.jit
    def on_canvas(shape):
        with extent((96, 160), shape, module.patch):
            return module.apply(variables, canvas)[0]

    result = on_canvas(np.int32(shape))
    expected = encode(module, variables, image)[0]
    assert_close(result[:, : expected.shape[1], : expected.shape[2]], expected, 1e-4)


def test_any_batch_axes():
    module = MODELS["dinov3"]()
    variables, image = variables_of(module), drawn_image(32, 48)
    expected = encode(module, variables, image)[0]
    assert_close(encode(module, variables, image[0])[0], expected[0], 1e-5)
    assert_close(encode(module, variables, image[:, None])[0], expected[:, None], 1e-5)


def test_stages_are_blocks_and_later_ones_have_no_parameters():
    module = OURS(grid=SIDE)
    assert module.stage_numbers == (1, 2)
    params = variables_of(module, (1,))["params"]
    assert {"blocks_0", "norm"} <= set(params)
    assert "blocks_1" not in params
    assert params["positions"].shape == (SIDE, SIDE, module.width)  # whatever the image's size


def test_bfloat16_is_near_float32_and_rematerialisation_changes_nothing():
    variables = variables_of(MODELS["dinov2"]())
    image = drawn_image(70, 56)
    (exact,) = encode(MODELS["dinov2"](), variables, image)
    (half,) = encode(MODELS["dinov2"](dtype=jnp.bfloat16), variables, image)
    assert half.dtype == jnp.bfloat16
    assert is_close(half.astype(np.float32), exact, 0.05)

    def gradient(rematerialise):
        module = MODELS["dinov2"](rematerialise=rematerialise)
        loss = jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, image)[0] ** 2)))
        return loss(variables), "remat" in str(jax.make_jaxpr(loss)(variables))

    (plain, no), (again, yes) = gradient(False), gradient(True)
    assert (no, yes) == (False, True)
    jax.tree.map(functools.partial(assert_close, relative=1e-4), again, plain)


def test_published_sizes_have_the_published_numbers_of_parameters():
    """Millions, of the model cards; those of DINOv2 without its mask token."""
    millions = {
        "dinov2_s": 22.06,
        "dinov2_b": 86.58,
        "dinov2_l": 304.37,
        "dinov2_g": 1136.48,
        "dinov3_s": 21.60,
        "dinov3_s_plus": 28.70,
        "dinov3_b": 85.66,
        "dinov3_l": 303.13,
        "dinov3_h_plus": 840.59,
    }
    for name, expected in millions.items():
        module = create_backbone(name, "float32")
        count = []
        for stage in (1, 2):  # all blocks are alike
            init = functools.partial(module.init, stages=(stage,))
            image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
            shapes = jax.eval_shape(init, jax.random.key(0), image)
            count.append(sum(array.size for array in jax.tree.leaves(shapes)))
        total = count[0] + (module.depth - 1) * (count[1] - count[0])
        assert total / 1e6 == pytest.approx(expected, abs=0.05), name
