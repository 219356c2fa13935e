"""Resizing is PyTorch's bilinear interpolation, written as a matrix with a transpose."""

import jax
import numpy as np
import pytest
from helpers import random, up_sampled

from fsseg_jax.models.resize import (
    adaptive_pool,
    interpolation_matrix,
    pull_back,
    resize,
    resize_into,
)

CORNERS = pytest.mark.parametrize("align_corners", [False, True])
SIZES = pytest.mark.parametrize(
    ("before", "after"),
    [
        ((5, 7), (33, 40)),  # up
        ((33, 40), (5, 7)),  # down, without antialiasing
        ((53, 53), (417, 417)),  # PANet's
        ((6, 9), (6, 9)),
        ((9, 4), (4, 9)),  # one axis down, the other up
        ((1, 1), (8, 5)),
        ((8, 5), (1, 1)),
        ((1, 6), (1, 3)),
    ],
)


@CORNERS
@SIZES
def test_resize_matches_pytorch(torch, before, after, align_corners):
    x = random(2, *before, 3)
    # In float32 PyTorch is off by 1e-5.
    expected = up_sampled(torch, x.astype(np.float64), after, align_corners)
    result = resize(x, after, align_corners)
    assert result.shape == (2, *after, 3)
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


@CORNERS
@SIZES
def test_pull_back_is_the_adjoint_of_resize(before, after, align_corners):
    """<resize(F), M> = <F, pull_back(M)> for every F and M: with unit F, entry by entry."""
    rng = np.random.default_rng(1)
    mask = rng.random((2, *after), np.float32)
    pulled = np.asarray(pull_back(mask, before, align_corners))
    assert pulled.shape == (2, *before)

    features = rng.standard_normal((2, *before, 1)).astype(np.float32)
    there = np.sum(np.asarray(resize(features, after, align_corners))[..., 0] * mask)
    back = np.sum(features[..., 0] * pulled)
    scale = np.sum(np.abs(features[..., 0]) * pulled)
    assert abs(there - back) <= 1e-5 * scale

    for position in [(0, 0), (before[0] // 2, before[1] // 2), (before[0] - 1, before[1] - 1)]:
        unit = np.zeros((*before, 1), np.float32)
        unit[position] = 1
        spread = np.asarray(resize(unit, after, align_corners))[..., 0]
        np.testing.assert_allclose(
            pulled[:, *position], (spread * mask).sum((-2, -1)), rtol=1e-4, atol=1e-5
        )


@CORNERS
@pytest.mark.parametrize("size", [1, 2, 53])
def test_same_size_changes_nothing(size, align_corners):
    np.testing.assert_array_equal(interpolation_matrix(size, size, align_corners), np.eye(size))


@CORNERS
@pytest.mark.parametrize("before", [(9, 13), (1, 1), (60, 60)])
def test_resize_to_a_shape_known_at_run_time_is_resize(before, align_corners):
    """One compiled function for all shapes."""
    x, compiled = random(*before, 3), []

    @jax.jit
    def into(x, shape):
        compiled.append(shape)
        return resize_into(x, shape, (70, 50), align_corners)

    rng = np.random.default_rng(2)
    corner_cases = [(1, 1), (1, 50), (70, 1), (2, 2), before, (70, 50), (5, 7), (61, 45)]
    shapes = [*corner_cases, *zip(rng.integers(1, 71, 12), rng.integers(1, 51, 12), strict=True)]
    for height, width in shapes:
        shape = min(int(height), 70), min(int(width), 50)
        result = into(x, np.array(shape, np.int32))
        assert result.shape == (70, 50, 3)
        result = np.asarray(result)[: shape[0], : shape[1]]
        expected = resize(x, shape, align_corners)
        np.testing.assert_allclose(result, expected, atol=2e-5, rtol=0)
    assert len(compiled) == 1


@CORNERS
def test_a_shape_beyond_the_canvas_is_cut(align_corners):
    """As where the longer side of an image is that of a square."""
    x = random(9, 9, 2)
    result = resize_into(x, np.array([64, 64], np.int32), (64, 40), align_corners)
    expected = resize(x, (64, 64), align_corners)[:, :40]
    np.testing.assert_allclose(result, expected, atol=2e-5, rtol=0)


# ----------------------------------------------------------------------------- adaptive pooling


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((60, 60), (8, 8)),  # the paper's smallest scale
        ((9, 11), (5, 6)),
        ((13, 7), (2, 3)),
        ((5, 17), (5, 1)),
        ((3, 2), (5, 7)),  # up: windows of one or two positions
        ((1, 1), (1, 1)),
    ],
)
def test_adaptive_pooling_matches_pytorch(torch, before, after):
    x = random(2, *before, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).permute(0, 3, 1, 2), after)
    result = adaptive_pool(x, after)
    assert result.shape == (2, *after, 3)
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-5)
