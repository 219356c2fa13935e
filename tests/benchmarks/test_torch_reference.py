"""Both forms in PyTorch compute what our models do: speeds are compared of the same function."""

import functools
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import assert_close

from fsseg_jax.benchmarks import torch_reference
from fsseg_jax.config import default_config
from fsseg_jax.episode import IGNORE, Episode, empty_episode
from fsseg_jax.errors import UserError
from fsseg_jax.models import create_model
from fsseg_jax.models.resize import resize

SIZE = 49
FORMS = pytest.mark.parametrize("tuned", [False, True], ids=["straightforward", "tuned"])
METHODS = pytest.mark.parametrize("method", torch_reference.METHODS)
needs_torch = pytest.mark.skipif(not torch_reference.available(), reason="PyTorch is absent")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads wait for each other busily, which takes long beside other processes."""
    if not torch_reference.available():
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ----------------------------------------------------------------------------- ours


def draw_batch(shots, episodes=2, seed=0):
    """Noisy images of a brighter rectangle, of which a strip is ignored."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (episodes, shots + 1, SIZE, SIZE, 3)).astype(np.uint8)
    labels = np.zeros(images.shape[:-1], np.uint8)
    for index in np.ndindex(labels.shape[:2]):
        (top, left), (height, width) = rng.integers(4, 25, 2), rng.integers(15, 30, 2)
        inside = np.s_[top : top + height, left : left + width]
        labels[index][inside] = 1
        images[index][inside] += np.array([120, 40, 90], np.uint8)
        labels[index][: rng.integers(1, 9)] = IGNORE
    return Episode(
        support_image=images[:, None, :-1],
        support_label=labels[:, None, :-1],
        query_image=images[:, -1],
        query_label=labels[:, -1],
        class_id=np.ones((episodes, 1), np.int32),
        query_index=np.arange(episodes, dtype=np.int32),
    )


@functools.cache
def our_model(method, shots):
    """The model, without dropout, and variables of which each array matters.

    They are drawn by NumPy, since Flax's would take long to compile.
    """
    config = default_config(method)
    if method == "canet":
        config.backbone, config.model.dropout = "resnet50", 0.0
    model = create_model(config)
    rng = np.random.default_rng(5)  # with which every method predicts both classes

    def draw(path, shape):
        name = path[-1].key
        if name in ("scale", "var"):
            # Blocks add up: each one adds a third of what it gets.
            least = 0.2 if path[-2].key == "bn3" and name == "scale" else 0.7
            return rng.uniform(least, least + 0.6, shape.shape).astype(np.float32)
        gain = 2 if path[1].key == "backbone" else 1
        deviation = np.sqrt(gain / np.prod(shape.shape[:-1])) if name == "kernel" else 0.1
        return (deviation * rng.standard_normal(shape.shape)).astype(np.float32)

    initialise = functools.partial(model.init, train=True)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(initialise, keys, empty_episode(1, shots, 32))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    if method == "canet":
        # What is made of the last prediction: large, so that the fourth refinement shows.
        variables["params"]["blocks_0"]["Conv_0"]["kernel"][:, :, -2:] *= 30
    return model, variables


@functools.partial(jax.jit, static_argnums=0)
def our_logits(model, variables, batch):
    return jax.vmap(lambda episode: model.apply(variables, episode.normalised()).logits)(batch)


@functools.partial(jax.jit, static_argnums=0)
def our_loss(model, variables, kernels, batch):
    """Mean over the episodes, and its gradients with respect to the kernels of some layers."""

    def loss(kernels):
        params = flatten_dict(variables["params"])
        params |= {(*path, "kernel"): kernel for path, kernel in kernels.items()}
        trained = {**variables, "params": unflatten_dict(params)}

        def one(episode):
            output = model.apply(trained, episode.normalised(), train=True)
            return model.loss(output, episode, jax.random.key(0), jnp.zeros(()))[0]

        return jax.vmap(one)(batch).mean()

    return jax.value_and_grad(loss)(kernels)


@functools.cache
def build_once(method, shots, tuned, dtype):
    options = {"image_size": SIZE, "shots": shots, "dtype": dtype}
    reference = torch_reference.build(method, tuned=tuned, **options)
    reference.load(our_model(method, shots)[1])
    return reference


def build(method, shots, tuned, dtype="float32"):
    """A reference with our variables, without dropout and gradients."""
    reference = build_once(method, shots, tuned, dtype)
    reference.dropout = 0.0
    reference.network.zero_grad()
    return reference


# ----------------------------------------------------------------------------- the same function


@functools.cache
def expected_logits(method, shots):
    return np.asarray(our_logits(*our_model(method, shots), draw_batch(shots)))


@needs_torch
@FORMS
@METHODS
@pytest.mark.parametrize("shots", [1, 2])
def test_logits_and_predictions_are_ours(method, shots, tuned):
    """CANet's after its refinements. All that counts is a difference of logits."""
    model = our_model(method, shots)[0]
    expected, batch = expected_logits(method, shots), draw_batch(shots)
    reference = build(method, shots, tuned)
    logits = reference.forward(batch).movedim(1, -1).numpy()
    assert_close(logits[..., 1] - logits[..., 0], expected[..., 1] - expected[..., 0])

    large = np.asarray(resize(expected, (SIZE, SIZE), model.align_corners))
    margin = large[..., 1] - large[..., 0]
    clear = abs(margin) > 1e-3 * abs(margin).max()
    prediction = reference.predict(reference.prepare(batch)).numpy()
    assert clear.mean() > 0.9
    assert 0.01 < (margin > 0).mean() < 0.99
    np.testing.assert_array_equal(prediction[clear], (margin > 0)[clear])


# A late and an early layer whose gradients are compared, by our names and by PyTorch's.
LAYERS = {
    "panet": {
        ("backbone", "features_28"): "backbone.features.28",
        ("backbone", "features_0"): "backbone.features.0",
    },
    "canet": {("aspp", "Conv_5"): "aspp.5", ("embedding",): "embedding"},
}


@functools.cache
def expected_loss(method, shots):
    """Also the gradients with respect to both kernels of `LAYERS`."""
    model, variables = our_model(method, shots)
    params = flatten_dict(variables["params"])
    kernels = {path: params[*path, "kernel"] for path in LAYERS[method]}
    loss, gradients = our_loss(model, variables, kernels, draw_batch(shots))
    return float(loss), [np.asarray(gradients[path]) for path in LAYERS[method]]


def gradients_of(reference, method):
    layers = dict(reference.network.named_modules())
    gradients = [layers[name].weight.grad for name in LAYERS[method].values()]
    return [gradient.permute(2, 3, 1, 0).numpy().copy() for gradient in gradients]


@needs_torch
@FORMS
@METHODS
def test_loss_and_gradients_are_ours(method, tuned, shots=2):
    """The mean over episodes, each with pixels of its own that count.

    On its way to the early layer the gradient meets ReLUs and max-pools, where rounding decides
    between inputs that are almost equal.
    """
    reference = build(method, shots, tuned)
    loss = reference.loss(draw_batch(shots))
    expected, gradients = expected_loss(method, shots)
    assert loss.item() == pytest.approx(expected, rel=1e-4)

    loss.backward()
    (last, expected_last), (early, expected_early) = zip(
        gradients_of(reference, method), gradients, strict=True
    )
    assert_close(last, expected_last)
    assert np.linalg.norm(early - expected_early) < 0.02 * np.linalg.norm(expected_early)


@needs_torch
@FORMS
@METHODS
def test_training_step_descends_the_mean_gradient_of_the_episodes(method, tuned, monkeypatch):
    """Also where the episodes' gradients are added up one by one; SGD itself is PyTorch's."""
    reference, batch = build(method, 1, tuned), draw_batch(1)
    stepped = []

    class Optimizer:
        def zero_grad(self):
            reference.network.zero_grad()

        def step(self):
            stepped.append(gradients_of(reference, method))

    monkeypatch.setattr(reference, "_optimizer", Optimizer())
    losses = [reference.train_step(batch), reference.train_step(reference.prepare(batch))]
    expected = reference.loss(batch)
    reference.network.zero_grad()
    expected.backward()
    for loss, gradients in zip(losses, stepped, strict=True):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert not loss.requires_grad
        assert_close(gradients[0], gradients_of(reference, method)[0])


# ----------------------------------------------------------------------------- the forms


@needs_torch
@METHODS
def test_bfloat16_is_near(method):
    batch = draw_batch(2)
    exact, near = (build(method, 2, tuned=True, dtype=dtype) for dtype in ("float32", "bfloat16"))
    logits, expected = near.forward(batch), exact.forward(batch)
    assert logits.dtype == expected.dtype
    difference = abs(logits - expected).max() / abs(expected).max()
    assert 1e-4 < difference < 0.1
    loss = near.loss(batch)
    assert loss.item() == pytest.approx(exact.loss(batch).item(), rel=0.05)
    loss.backward()
    assert np.isfinite(gradients_of(near, method)[1]).all()


@needs_torch
@FORMS
def test_dropout_is_of_training_alone(tuned):
    reference, batch = build("canet", 1, tuned), draw_batch(1)
    without = reference.loss(batch).item()
    logits = reference.forward(batch)
    reference.dropout = type(reference).dropout
    losses = {reference.loss(batch).item() for _ in range(2)}
    assert len(losses | {without}) == 3
    np.testing.assert_array_equal(reference.forward(batch), logits)


@needs_torch
@FORMS
def test_frozen_backbone_has_no_gradient(tuned):
    reference = build("canet", 1, tuned)
    reference.loss(draw_batch(1)).backward()
    for name, parameter in reference.network.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name


@needs_torch
@pytest.mark.parametrize("annotation", [0, 255, 254])
def test_panet_without_an_object_in_the_support_has_a_finite_loss(annotation):
    """A support of background, ignored or unknown pixels alone; both forms agree on it."""
    batch = draw_batch(1)
    batch = batch.replace(support_label=np.full_like(batch.support_label, annotation))
    losses = [build("panet", 1, tuned).loss(batch) for tuned in (False, True)]
    assert np.isfinite(losses[1].item())
    if annotation != 254:  # then no pixel counts, and the mean in PyTorch is of none
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)


# ----------------------------------------------------------------------------- use


@needs_torch
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sst", {"tuned": True}, "method = 'sst'"),
        ("panet", {"tuned": True, "dtype": "float16"}, "dtype = 'float16'"),
        ("panet", {"tuned": False, "dtype": "bfloat16"}, "set tuned = True"),
        ("panet", {"tuned": False, "compile": True}, "set tuned = True"),
    ],
)
def test_says_what_cannot_be_built(method, options, message):
    with pytest.raises(UserError, match=message):
        torch_reference.build(method, image_size=SIZE, **options)


@needs_torch
def test_says_that_episodes_have_another_shape():
    reference = torch_reference.build("panet", tuned=False, image_size=SIZE, shots=1)
    with pytest.raises(UserError, match=r"\(1, 2, 49, 49\) \(way, shot, height, width\)"):
        reference.prepare(draw_batch(2))


def test_module_needs_no_pytorch():
    """Neither where there is none, nor before a reference is built."""
    program = """
        import sys
        import fsseg_jax.benchmarks.torch_reference as module
        from fsseg_jax.errors import UserError
        assert "torch" not in sys.modules
        sys.modules["torch"] = None
        assert not module.available()
        try:
            module.build("panet", tuned=False, image_size=49)
        except UserError as error:
            print(error)
    """
    assert "pip install torch" in run(sys.executable, "-c", textwrap.dedent(program)).stdout
