"""PANet is what its equations say, and has the symmetries that they have."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_trees_close, draw_values, is_close, up_sampled
from tiny_models import block_labels

from fsseg_jax.backbones.small import Small
from fsseg_jax.backbones.vgg import VGG16
from fsseg_jax.episode import IGNORE, Episode
from fsseg_jax.models.panet import PANet

SMALL = PANet(backbone=Small(width=16))


# ----------------------------------------------------------------------------- episodes


def draw_episode(ways, shots, seed=0, size=33):
    """Textured images of textured objects, which prototypes can tell apart.

    A support image shows an object of its way, one of the next way, and a strip of pixels
    that are labelled 255; the query shows all ways and such a strip.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    # A colour and a wave of its own for the background and each way.
    colours = 1.5 * rng.standard_normal((ways + 1, 3))
    frequencies = rng.uniform(5, 40, (ways + 1, 2))

    def paint(objects):
        label = np.zeros((size, size), np.uint8)
        for way in objects:  # later ones cover earlier ones
            (top, left), (height, width) = rng.uniform(0.05, 0.45, 2), rng.uniform(0.25, 0.5, 2)
            inside = (top < rows) & (rows < top + height)
            label[inside & (left < columns) & (columns < left + width)] = way
        phase = rows * frequencies[label, 0] + columns * frequencies[label, 1] + rng.uniform(0, 6)
        image = colours[label] + np.sin(phase)[..., None]
        image += 0.3 * rng.standard_normal((size, size, 3))
        label[-size // 8 :] = IGNORE
        return image.astype(np.float32), label

    supports = [[paint([way % ways + 1, way]) for _ in range(shots)] for way in range(1, ways + 1)]
    query_image, query_label = paint(range(1, ways + 1))
    return Episode(
        support_image=np.array([[image for image, _ in way] for way in supports]),
        support_label=np.array([[label for _, label in way] for way in supports]),
        query_image=query_image,
        query_label=query_label,
        class_id=np.arange(1, ways + 1),
        query_index=np.array(0),
    )


def differentiate(model, episode, forward, given):
    """Logits, the parts of the loss, their sum and its gradients with respect to what is given."""

    def loss(given):
        output = forward(given)
        total, parts = model.loss(output, episode, jax.random.key(0), jnp.zeros(()))
        return total, {**parts, "logits": output.logits}

    (total, results), gradients = jax.value_and_grad(loss, has_aux=True)(given)
    return {**results, "total": total, "gradients": gradients}


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, episode):
    def forward(params):
        return model.apply({"params": {"backbone": params}}, episode, train=True)

    return differentiate(model, episode, forward, params)


@functools.cache
def small_params():
    shapes = jax.eval_shape(SMALL.backbone.init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))
    return draw_values(shapes["params"])


# ----------------------------------------------------------------------------- the equations


def run_equations(pytorch, supports, query, support_label, query_label, **options):
    """The logits, both losses, and the ways that are predicted anywhere."""
    from fsseg_jax.benchmarks.torch_reference.panet import Equations

    equations = Equations(**options)
    support_label, query_label = map(pytorch.torch.tensor, (support_label, query_label))
    logits = equations.logits(supports, support_label, query)
    return types.SimpleNamespace(
        logits=logits,
        predicted=[bool((logits.argmax(dim=0) == way + 1).any()) for way in range(len(supports))],
        segmentation=equations.score(logits, query_label),
        alignment=equations.alignment(supports, support_label, query, logits),
    )


def run_pytorch_on_vgg(pytorch, params, episode):
    """The formulation in PyTorch, and the gradients of both losses' sum."""
    import pytorch_vgg

    weights = pytorch_vgg.to_pytorch(params)
    for leaf in weights.values():
        leaf.requires_grad_()

    def encode(images):
        return pytorch_vgg.features(weights, pytorch.planes(images).float())

    result = run_equations(
        pytorch,
        pytorch.torch.stack([encode(images) for images in episode.support_image]),
        encode(episode.query_image[None])[0],
        episode.support_label,
        episode.query_label,
    )
    (result.segmentation + result.alignment).backward()
    return result, {name: leaf.grad for name, leaf in weights.items()}


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (2, 2)])
def test_logits_losses_and_gradients_match_pytorch(pytorch, ways, shots):
    """On VGG-16, end to end, all to 1e-4.

    Where two inputs of a max-pool (or an input of a ReLU and 0) are equal up to rounding, a
    rounding error decides where the gradient goes. That happens in one episode of five, so the
    gradients must agree in one of a few; a wrong gradient would agree in none.
    """
    import pytorch_vgg

    model = PANet(backbone=VGG16())
    params = pytorch_vgg.random_params()
    for seed in range(2, 8):
        episode = draw_episode(ways, shots, seed=seed)
        expected, gradients = run_pytorch_on_vgg(pytorch, params, episode)
        assert all(expected.predicted), "choose a seed in which every way is predicted"
        result = run(model, params, episode)

        assert_close(result["logits"], pytorch.channels_last(expected.logits), 1e-4)
        segmentation, alignment = expected.segmentation.item(), expected.alignment.item()
        assert float(result["segmentation"]) == pytest.approx(segmentation, rel=1e-4)
        assert float(result["alignment"]) == pytest.approx(alignment, rel=1e-4)
        assert float(result["total"]) == pytest.approx(segmentation + alignment, rel=1e-4)
        ours = pytorch_vgg.to_pytorch(result["gradients"])
        if all(is_close(ours[name], gradients[name], 1e-4) for name in ours):
            return
    pytest.fail("the gradients differ in every episode")


@functools.partial(jax.jit, static_argnums=0)
def run_on_features(model, features, support_label, query_label):
    """What `run` gives, from (support, query) features on and with respect to them."""
    ways, _, height, width = support_label.shape
    episode = Episode(None, support_label, None, query_label, jnp.arange(ways), jnp.array(0))

    def forward(features):
        supports, query = features
        given = supports, support_label, query, jnp.zeros((height, width, 3))
        return model.apply({}, *given, train=True, method="segment")

    return differentiate(model, episode, forward, features)


def run_pytorch_on_features(pytorch, features, support_label, query_label, weight, **options):
    """Ditto in PyTorch; the total is segmentation + weight * alignment."""
    leaves = [pytorch.planes(array).requires_grad_() for array in features]
    result = run_equations(pytorch, *leaves, support_label, query_label, **options)
    total = result.segmentation + weight * result.alignment
    total.backward()
    return {
        "segmentation": result.segmentation.item(),
        "alignment": result.alignment.item(),
        "total": total.item(),
        "logits": pytorch.channels_last(result.logits),
        "predicted": result.predicted,
        "gradients": tuple(pytorch.channels_last(leaf.grad) for leaf in leaves),
    }


def draw_features(ways, shots, seed=0):
    """Features of 5 x 7 positions and labels of 23 x 37 pixels, among them every way and 255."""
    rng = np.random.default_rng(seed)
    supports = rng.standard_normal((ways, shots, 5, 7, 6)).astype(np.float32)
    query = rng.standard_normal((5, 7, 6)).astype(np.float32)
    support_label = block_labels(rng, ways, (ways, shots, 23, 37), (6, 7))
    return (supports, query), support_label, block_labels(rng, ways, (23, 37), (6, 7))


def assert_same_from_features(result, expected):
    assert_close(result["logits"], expected["logits"], 1e-5)
    for name in ("segmentation", "alignment", "total"):
        assert float(result[name]) == pytest.approx(expected[name], rel=1e-5, abs=1e-7)
    assert_trees_close(result["gradients"], expected["gradients"], 1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"ignored_is_background": False}, {"ignored_is_background": False}),
        ({"align_corners": True}, {"align_corners": True}),
        ({"similarity_scale": 7.0}, {"scale": 7.0}),
        ({"alignment_weight": 0.3}, {"weight": 0.3}),
    ],
)
def test_every_option_matches_pytorch(pytorch, ours, theirs):
    drawn = draw_features(ways=3, shots=2)
    expected = run_pytorch_on_features(pytorch, *drawn, **{"weight": 1.0, **theirs})
    assert all(expected["predicted"])
    model = PANet(backbone=None, **ours)
    assert_same_from_features(run_on_features(model, *drawn), expected)


# ----------------------------------------------------------------------------- absent ways


def test_way_that_is_not_predicted_adds_nothing_to_the_alignment(pytorch):
    (supports, query), support_label, query_label = draw_features(ways=3, shots=2)
    query += 2  # no feature of the query is near ...
    supports[1] -= 4  # ... the prototype of way 2
    supports[0] += 1
    supports[2] += 2
    drawn = (supports, query), support_label, query_label
    expected = run_pytorch_on_features(pytorch, *drawn, weight=1.0)
    assert expected["predicted"] == [True, False, True]
    assert expected["alignment"] > 0
    assert_same_from_features(run_on_features(PANet(backbone=None), *drawn), expected)


def test_prediction_of_nothing_has_no_alignment_loss():
    """All is background: the loss and its gradients are those of the segmentation alone."""
    (supports, query), support_label, query_label = draw_features(ways=2, shots=2)
    supports, query = abs(supports), abs(query)  # all features have much in common ...
    support_label[(support_label == 1) | (support_label == 2)] = 0  # ... and there is no object
    drawn = (supports, query), support_label, query_label
    result = run_on_features(PANet(backbone=None), *drawn)
    assert (np.argmax(result["logits"], axis=-1) == 0).all()
    assert float(result["alignment"]) == 0
    assert all(np.isfinite(gradient).all() for gradient in result["gradients"])
    without = run_on_features(PANet(backbone=None, alignment_weight=0.0), *drawn)
    assert_trees_close(result["gradients"], without["gradients"], 1e-6)
    assert abs(result["gradients"][1]).max() > 0


def test_parameters_have_finite_gradients_when_a_way_is_not_predicted():
    episode = draw_episode(3, 2)
    label = np.where(episode.support_label == 3, 0, episode.support_label)
    # Way 3 has no pixels, so its prototype is zero; way 2's object is to be found.
    image = np.where((label == 2)[..., None], 4.0, episode.support_image).astype(np.float32)
    query = np.where((episode.query_label != 0)[..., None], 4.0, episode.query_image)
    episode = episode.replace(
        support_image=image, support_label=label, query_image=query.astype(np.float32)
    )
    result = run(SMALL, small_params(), episode)
    assert not (np.argmax(result["logits"], axis=-1) == 3).any()
    assert np.isfinite(float(result["total"]))
    for gradient in jax.tree.leaves(result["gradients"]):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


# ----------------------------------------------------------------------------- options


def test_without_alignment_the_loss_is_the_segmentation_alone(pytorch):
    drawn = draw_features(ways=3, shots=2)
    result = run_on_features(PANet(backbone=None, alignment_weight=0.0), *drawn)
    expected = run_pytorch_on_features(pytorch, *drawn, weight=0.0)
    assert "alignment" not in result
    assert float(result["total"]) == float(result["segmentation"])
    assert_trees_close(result["gradients"], expected["gradients"], 1e-4)


def test_training_and_inference_give_the_same_logits():
    episode = draw_episode(3, 2)
    output = jax.jit(SMALL.apply)({"params": {"backbone": small_params()}}, episode)
    assert output.logits.shape == (9, 9, 4)  # a quarter of 33 px; background and 3 ways
    assert_close(output.logits, run(SMALL, small_params(), episode)["logits"], 1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_distances_of_prototypes_are_those_of_pooled_features(torch, align_corners):
    """By PyTorch: features up-sampled to the masks, their means, and the means' distances."""

    def pooled(features, mask):
        large = up_sampled(torch, features[None], mask.shape, align_corners)[0]
        return large[:, torch.tensor(mask)].mean(dim=1).numpy()

    (supports, query), support_label, query_label = draw_features(ways=3, shots=2)
    query_label = np.where(query_label == 2, 0, query_label)  # a way that the query does not show
    model = PANet(backbone=None, align_corners=align_corners)
    given = supports, support_label, query
    result = model.apply({}, *given, query_label, method="measure")
    blank = np.zeros((23, 37, 3), np.float32)
    logits = np.asarray(model.apply({}, *given, blank, method="segment").logits)
    predicted = logits.argmax(axis=-1)
    apart = {"prototype distance": [], "prototype distance, predicted": []}
    for way in (1, 2, 3):
        shots = zip(supports[way - 1], support_label[way - 1], strict=True)
        prototype = np.mean([pooled(features, label == way) for features, label in shots], axis=0)
        for distances, mask in zip(apart.values(), (query_label, predicted), strict=True):
            if (mask == way).any():
                distances.append(np.linalg.norm(pooled(query, mask == way) - prototype))
    assert list(map(len, apart.values())) == [2, 3]
    for name, distances in apart.items():
        assert float(result[name]) == pytest.approx(np.mean(distances), rel=1e-3)
    nothing = model.apply({}, *given, np.zeros_like(query_label), method="measure")
    assert np.isnan(nothing["prototype distance"])


def test_bfloat16_gives_almost_the_same_logits():
    """Features are computed in bfloat16 (8 bits of mantissa), prototypes and logits in float32."""
    episode = draw_episode(3, 2)
    half = PANet(backbone=Small(width=16, dtype=jnp.bfloat16))
    output = jax.jit(half.apply)({"params": {"backbone": small_params()}}, episode)
    assert output.logits.dtype == jnp.float32
    expected = run(SMALL, small_params(), episode)["logits"]
    difference = np.abs(output.logits - expected).max()
    assert 0 < difference < 0.5  # of 20
