"""The optimiser against PyTorch's rule, the schedules against their formulas, steps in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fsseg_jax.backbones.small import Small
from fsseg_jax.config import default_config
from fsseg_jax.data import training_items, training_pipeline
from fsseg_jax.data.sampling import sample
from fsseg_jax.devices import make_mesh, replicated, split
from fsseg_jax.episode import Episode
from fsseg_jax.models import Method, create_model
from fsseg_jax.models.output import Output
from fsseg_jax.training.state import (
    in_parts,
    initial_state,
    learning_rate,
    make_dispatch,
    make_optimizer,
    make_step,
    with_rows,
)


def train_config(**fields):
    train = default_config("panet").train
    train.update(fields)
    return train


def test_optimizer_is_pytorch_sgd_with_its_step_decay():
    """PyTorch's update, as its documentation has it: decay is added to the gradient, momentum
    gathers gradients without the rate, and the rate multiplies last. (Written out: importing
    torch.optim loads compilers that do not get on with TensorFlow's in one process.)"""
    train = train_config(learning_rate=0.1, decay_every=4, weight_decay=0.02)
    rng = np.random.default_rng(0)
    theirs, gradients, velocity = rng.normal(size=5), rng.normal(size=(10, 5)), np.zeros(5)
    ours = jnp.asarray(theirs)
    optimizer = make_optimizer(train)
    state = optimizer.init(ours)
    for step, gradient in enumerate(gradients):
        velocity = 0.9 * velocity + gradient + 0.02 * theirs
        theirs = theirs - 0.1 * 0.1 ** (step // 4) * velocity
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_poly_schedule_is_its_formula():
    schedule = learning_rate(train_config(learning_rate=0.3, schedule="poly", steps=50))
    steps = np.arange(51)
    expected = 0.3 * (1 - steps / 50) ** 0.9
    np.testing.assert_allclose([schedule(step) for step in steps], expected, atol=1e-7)


def test_warmup_rises_linearly_from_zero_and_then_leaves_the_schedule_alone():
    plain = learning_rate(train_config(schedule="poly", steps=50))
    warm = learning_rate(train_config(schedule="poly", steps=50, warmup=10))
    ratios = [float(warm(step) / plain(step)) for step in range(20)]
    np.testing.assert_allclose(ratios, np.minimum(np.arange(20) / 10, 1), rtol=1e-6)


# ----------------------------------------------------------------------------- stored rows


class Visits(Method):
    """Stores for each item how often it has come up, and tells what was stored before."""

    def encode(self, image, train=False):
        return self.extract(image, train)

    def segment(self, support, label, query, query_image, previous=None, train=False):
        previous = jnp.zeros(()) if previous is None else previous
        logits = query[..., :2].astype(jnp.float32)
        return Output(logits, {"previous": previous}, row=previous + 1)

    def loss(self, output, episode, key, epoch):
        return output.logits.mean(), {"previous": output.aux["previous"]}


def test_what_is_stored_for_an_item_is_of_the_epoch_before(make_source):
    """As CANet's last prediction is (sec. 4.2), where items take turns."""
    source, batch_size = make_source(images=6), 4
    config = default_config("panet")
    config.image_size, config.seed, config.train.batch_size = 32, 3, batch_size
    config.data.update(pipeline="device", sampling="items", train_min_pixels=1)
    items, mesh = training_items(config.data, source), make_mesh(1)
    count = items.epoch("items")
    assert count == 9  # so that batches end within epochs
    pipeline = training_pipeline(config, source, items, mesh)
    model = Visits(backbone=Small(width=16))
    step = make_step(
        model, make_optimizer(config.train), seed=0, items=count, batch_size=batch_size
    )
    dispatch = make_dispatch(step, pipeline.draw, mesh)
    state = jax.device_put(initial_state(model, config, "", count), replicated(mesh))
    for number in range(4 * count // batch_size):
        rows = np.array(state.rows)
        episodes = number * batch_size + np.arange(batch_size)
        epoch = episodes // count
        drawn = sample(items, 3, episodes, 1, 1, sampling="items").query_index
        twice = [row in drawn[:place] for place, row in enumerate(drawn)]
        np.testing.assert_array_equal(rows[drawn], epoch - twice)
        assert not any(twice) or epoch[0] < epoch[-1]
        state, metrics = dispatch(state, pipeline.feed(1), 1)
        np.testing.assert_allclose(metrics["previous"], rows[drawn].mean())
        np.testing.assert_array_equal(np.array(state.rows)[drawn], rows[drawn] + 1)


def test_of_several_rows_for_one_item_the_last_is_stored():
    rng = np.random.default_rng(0)
    for _ in range(5):
        stored, rows = rng.normal(size=(7, 2, 3)), rng.normal(size=(8, 2, 3))
        items = rng.integers(0, 7, 8)
        expected = stored.copy()
        for item, row in zip(items, rows, strict=True):
            expected[item] = row
        found = with_rows(jnp.array(stored), jnp.array(items), jnp.array(rows))
        np.testing.assert_array_equal(found, expected.astype(np.float32))


# ----------------------------------------------------------------------------- parts of a batch


def small_step(accumulate):
    """A dispatch of one step, the state before it and a batch of random episodes."""
    config = default_config("panet")
    config.backbone, config.image_size = "small", 32
    config.train.learning_rate = 0.1
    model = create_model(config)
    rng = np.random.default_rng(0)
    size = (8, 1, 1, 32, 32)
    batch = Episode(
        support_image=rng.integers(0, 256, (*size, 3)).astype(np.uint8),
        support_label=rng.integers(0, 2, size).astype(np.uint8),
        query_image=rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
        query_label=rng.integers(0, 2, (8, 32, 32)).astype(np.uint8),
        class_id=np.ones((8, 1), np.int32),
        query_index=rng.permutation(10)[:8].astype(np.int32),
    )
    options = {"seed": 0, "items": 10, "batch_size": 8, "accumulate": accumulate}
    step = make_step(model, make_optimizer(config.train), **options)
    mesh = make_mesh(2)
    state = jax.device_put(initial_state(model, config, "", 10), replicated(mesh))
    dispatch = make_dispatch(step, lambda fed, done, number: fed, mesh)
    return dispatch, state, jax.device_put(batch, split(mesh))


def test_a_step_in_parts_is_the_step_of_the_whole_batch_with_less_memory():
    results, needed = [], []
    for accumulate in (1, 4):
        dispatch, state, batch = small_step(accumulate)
        needed.append(dispatch.lower(state, batch, 1).compile().memory_analysis())
        results.append(jax.device_get(dispatch(state, batch, 1)))
    (whole, metrics), (parts, metrics_of_parts) = results
    assert metrics.keys() == metrics_of_parts.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], value, rtol=1e-4)
    one, other = whole.variables["params"], parts.variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
    assert needed[1].temp_size_in_bytes < 0.7 * needed[0].temp_size_in_bytes


def test_parts_carry_values_on_and_give_means_and_rows_in_their_order():
    batch = {"x": jnp.arange(12.0).reshape(12, 1), "unused": None}

    def part(carry, rows):
        x = rows["x"]
        return carry + x.sum(), ({"mean": x.mean()}, {"product": (x * x).mean()}, 10 * x)

    carry, (mean, product, rows) = jax.jit(lambda b: in_parts(part, jnp.ones(()), b, 3))(batch)
    assert carry == 1 + 66
    assert mean["mean"] == 5.5
    np.testing.assert_allclose(product["product"], np.mean(np.arange(12.0) ** 2), rtol=1e-6)
    np.testing.assert_array_equal(rows, 10 * np.arange(12.0)[:, None])
