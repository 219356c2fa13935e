"""What the methods share: joined ways, labels, features, freezing, and the training step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import assert_close, draw_values, random, up_sampled
from tiny_models import EveryFourth, TwoStages, block_labels

from fsseg_jax.backbones.small import Small
from fsseg_jax.backbones.vgg import VGG16
from fsseg_jax.config import default_config
from fsseg_jax.episode import IGNORE, UNLABELLED, Episode
from fsseg_jax.errors import UserError
from fsseg_jax.models import METHODS, create_model, init_variables
from fsseg_jax.models.losses import cross_entropy
from fsseg_jax.models.method import (
    Method,
    join_ways,
    query_labels,
    support_labels,
    support_masks,
)
from fsseg_jax.models.option import options_of
from fsseg_jax.models.output import Output
from fsseg_jax.models.panet import PANet
from fsseg_jax.training.state import abstract_state, make_optimizer, make_step

ITEMS = 5


# ----------------------------------------------------------------------------- joined ways


def test_joined_ways_are_the_strongest_background_and_each_foreground():
    logits = 3 * random(3, 4, 5, 2)
    probability = np.exp(logits.astype(float))
    probability /= probability.sum(axis=-1, keepdims=True)
    background = np.log(probability[..., 0]).max(axis=0)
    expected = np.stack([background, *np.log(probability[..., 1])], axis=-1)
    np.testing.assert_allclose(join_ways(logits), expected, rtol=1e-4, atol=1e-5)


def test_joined_ways_are_finite_where_a_branch_is_sure():
    logits = np.array([[-500.0, 500.0], [500.0, -500.0]], np.float32)[:, None, None]
    joined = np.asarray(join_ways(logits))[0, 0]
    np.testing.assert_allclose(joined, [0, 0, -1000])


# ----------------------------------------------------------------------------- labels


def test_query_labels_are_one_binary_label_a_way():
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 5, 6))
    result = np.asarray(query_labels(label, 3))
    assert result.dtype == np.uint8
    expected = np.stack([np.where(label == 255, 255, label == way) for way in (1, 2, 3)], axis=1)
    np.testing.assert_array_equal(result, expected)


def test_supports_are_masked_and_labelled_by_their_own_way():
    choices = np.array([0, 1, 2, 3, UNLABELLED, IGNORE], np.uint8)
    label = np.random.default_rng(0).choice(choices, (3, 2, 5, 6))
    masks, labels = np.asarray(support_masks(label)), np.asarray(support_labels(label))
    assert masks.dtype == bool
    assert labels.dtype == np.uint8
    own = label == np.array([1, 2, 3])[:, None, None, None]
    np.testing.assert_array_equal(masks, own)
    np.testing.assert_array_equal(labels, np.where(label >= UNLABELLED, IGNORE, own))


# ----------------------------------------------------------------------------- features


def test_stages_are_brought_to_the_resolution_of_the_last_one(torch):
    """Of VGG-16, whose second stage has stride 4 and the others 8."""
    stages, image = (2, 3, 4), random(1, 36, 44, 3)
    backbone = VGG16()
    init = functools.partial(backbone.init, stages=stages)
    params = draw_values(jax.eval_shape(init, jax.random.key(0), image))["params"]

    @jax.jit
    def run(params):
        joined = [
            PANet(backbone=backbone, stages=stages, **options).apply(
                {"params": {"backbone": params}}, image, False, method="extract"
            )
            for options in ({"align_corners": True}, {"align_corners": False})
        ]
        return backbone.apply({"params": params}, image, stages=stages), joined

    features, joined = run(params)
    assert [x.shape for x in features] == [(1, 9, 11, 128), (1, 5, 6, 256), (1, 5, 6, 512)]
    for result, align_corners in zip(joined, (True, False), strict=True):
        small = up_sampled(torch, np.array(features[0]), (5, 6), align_corners)
        expected = np.concatenate([small.permute(0, 2, 3, 1), *features[1:]], axis=-1)
        np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())


class Scaled(nn.Module):
    """The image times a number, in the place of a network's features."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (image * self.param("factor", nn.initializers.ones, ()),)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_passes_through_the_features_unless_the_backbone_is_frozen(frozen):
    """Even where it is asked for."""
    model, image = PANet(backbone=Scaled(), freeze_backbone=frozen), random(4, 4, 3)

    def total(factor):
        params = {"backbone": {"factor": factor}}
        return model.apply({"params": params}, image, True, method="extract").sum()

    value, gradient = jax.value_and_grad(total)(jnp.float32(2))
    assert float(value) == pytest.approx(2 * image.sum(), rel=1e-4)
    assert float(gradient) == pytest.approx(0 if frozen else image.sum(), rel=1e-4)


@pytest.mark.parametrize("method", ["canet", "ltafnet", "mfnet"])
def test_dropout_takes_whole_channels_of_each_image_and_embedding(method):
    """And the others are scaled up; at inference all are there."""
    model = METHODS[method](backbone=EveryFourth(), width=64, dropout=0.5)
    images = random(3, 33, 37, 3)
    encode = functools.partial(model.apply, method="encode")
    init = functools.partial(model.init, method="encode")
    variables = draw_values(jax.eval_shape(init, jax.random.key(0), images))
    whole = jax.tree.leaves(encode(variables, images))
    dropped = encode(variables, images, True, rngs={"dropout": jax.random.key(0)})
    kept = [np.asarray(x).any(axis=(1, 2)) for x in jax.tree.leaves(dropped)]
    for before, after, mask in zip(whole, jax.tree.leaves(dropped), kept, strict=True):
        assert_close(after, 2 * before * mask[:, None, None], 1e-5)
        assert 0.3 < mask.mean() < 0.7
    masks = {tuple(mask) for mask in np.concatenate(kept).tolist()}
    assert len(masks) == (6 if method == "mfnet" else 3)


# ----------------------------------------------------------------------------- steps

TINY = {
    "panet": {},
    "canet": {"width": 8},
    "sst": {"width": 8},
    "ltafnet": {"width": 8, "refinement_width": 4},
    "mfnet": {"width": 8},
}


class Linear(Method):
    """A linear classifier of the query's features, without a convolution of its own."""

    def setup(self):
        self.head = nn.Dense(2)

    def encode(self, image, train=False):
        return self.head(self.extract(image, train))

    def segment(self, supports, label, query, image, previous=None, train=False):
        return Output(query, None)

    def loss(self, output, episode, key, epoch):
        return cross_entropy(output.logits, episode.query_label, True), {}


def tiny_model(name, **fields):
    if name == "linear":
        return Linear(backbone=TwoStages(), **fields)
    return METHODS[name](backbone=Small(width=16), stages=(2, 5), **TINY[name], **fields)


def tiny_config(shots=2, **train):
    config = default_config()
    config.shots, config.image_size = shots, 32
    config.train.update(momentum=0.9, weight_decay=0.0, schedule="constant", learning_rate=0.1)
    config.train.update(train)
    return config


def draw_state(model, config):
    """A state of drawn parameters, and an optimizer that has seen nothing."""
    state = abstract_state(model, config, ITEMS)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    return zeros.replace(variables=draw_values(state.variables))


def draw_batch(shots=2, size=32, query_index=(3, 1)):
    rng, batch = np.random.default_rng(0), len(query_index)
    return Episode(
        support_image=rng.integers(0, 256, (batch, 1, shots, size, size, 3), np.uint8),
        support_label=block_labels(rng, 1, (batch, 1, shots, size, size), (4, 4)),
        query_image=rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        query_label=block_labels(rng, 1, (batch, size, size), (4, 4)),
        class_id=np.ones((batch, 1), np.int32),
        query_index=np.array(query_index, np.int32),
    )


def stepper(model, config, seed=0):
    optimizer = make_optimizer(config.train)
    step = make_step(model, optimizer, seed=seed, items=ITEMS, batch_size=2)
    return jax.jit(step)


def params_of(state):
    """By the names of their paths."""
    return flatten_dict(state.variables["params"], sep="/")


# A bias that moves every shot's score alike changes no softmax over the shots.
UNMOVED = {"canet": {"attention_1/bias"}}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "frozen"),
    [*((name, True) for name in METHODS), ("panet", False)],
)
def test_step_moves_every_parameter_but_the_frozen_ones(name, frozen):
    """Without weight decay, which would move those too that have no gradient."""
    model, config = tiny_model(name, freeze_backbone=frozen), tiny_config()
    state = draw_state(model, config)
    after, results = stepper(model, config)(state, draw_batch())
    assert np.isfinite(float(results["loss"]))
    assert int(after.step) == 1
    before, after = params_of(state), params_of(after)
    assert before.keys() == after.keys()
    still = {key for key in before if np.array_equal(before[key], after[key])}
    expected = {key for key in before if frozen and key.startswith("backbone/")}
    assert still - UNMOVED.get(name, set()) == expected
    assert any(key.startswith("backbone/") for key in before)


def test_optimizer_has_a_momentum_for_what_is_trained_and_nothing_else():
    frozen = tiny_model("canet")
    assert frozen.freeze_backbone
    for model in (frozen, tiny_model("canet", freeze_backbone=False)):
        state = abstract_state(model, tiny_config(), ITEMS)
        shapes = sorted(
            leaf.shape
            for name, leaf in params_of(state).items()
            if not (model.freeze_backbone and name.startswith("backbone/"))
        )
        momenta = [leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.shape != ()]
        assert sorted(momenta) == shapes


# ----------------------------------------------------------------------------- work of a step


@pytest.mark.parametrize("name", METHODS)
def test_step_with_a_frozen_backbone_has_none_of_its_backward_pass(name, find_operations):
    """Small has eight convolutions larger than 1 x 1; each has another one in that pass."""
    counts = {}
    for frozen in (True, False):
        model, config = tiny_model(name, freeze_backbone=frozen), tiny_config()
        step = make_step(model, make_optimizer(config.train), seed=0, items=ITEMS, batch_size=2)
        state = abstract_state(model, config, ITEMS)
        jaxpr = jax.make_jaxpr(step)(state, draw_batch()).jaxpr
        counts[frozen] = len(find_operations(jaxpr, "conv_general_dilated"))
    assert counts[False] == counts[True] + 8


# ----------------------------------------------------------------------------- rates


def test_rate_of_new_layers_multiplies_all_updates_but_the_backbones():
    moved = {}
    for rate in (1.0, 10.0):
        model = tiny_model("linear")
        config = tiny_config(momentum=0.0, new_layers_rate=rate)
        state = draw_state(model, config)
        after, _ = stepper(model, config)(state, draw_batch())
        before, after = params_of(state), params_of(after)
        moved[rate] = {name: after[name] - before[name] for name in before}
    assert {name.split("/")[0] for name in moved[1.0]} == {"backbone", "head"}
    for name, slow in moved[1.0].items():
        factor = 1 if name.startswith("backbone/") else 10
        assert np.abs(slow).max() > 0
        np.testing.assert_allclose(
            moved[10.0][name], factor * slow, rtol=1e-3, atol=1e-3 * np.abs(factor * slow).max()
        )


# ----------------------------------------------------------------------------- rows and chance


class Diary(Method):
    """Writes down the number in the query's corner, behind what it read."""

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def encode(self, image, train=False):
        return image

    def segment(self, supports, label, query, image, previous=None, train=False):
        number = label[0, 0, 0, 0].astype(jnp.float32)
        row = number if previous is None else 10 * previous[0] + number
        return Output(self.scale * jnp.ones((2, 2, 2)), None, row=row[None])

    def loss(self, output, episode, key, epoch):
        return output.logits.sum(), {"row": output.row[0], "epoch": jnp.asarray(epoch)}


def test_rows_are_written_at_the_querys_item_and_read_on_its_next_visit():
    model, config = Diary(backbone=None), tiny_config()
    step, state = stepper(model, config), draw_state(model, config)
    assert state.rows.shape == (ITEMS, 1)
    expected = np.zeros(ITEMS)
    for visit, (items, numbers) in enumerate(
        [((3, 1), (4, 5)), ((1, 0), (6, 7)), ((4, 3), (8, 9))]
    ):
        batch = draw_batch(size=4, query_index=items)
        label = np.broadcast_to(
            np.array(numbers, np.uint8)[:, None, None, None, None], (2, 1, 2, 4, 4)
        )
        state, results = step(state, batch.replace(support_label=label))
        for item, number in zip(items, numbers, strict=True):
            expected[item] = 10 * expected[item] + number
        np.testing.assert_array_equal(state.rows[:, 0], expected)
        assert float(results["row"]) == expected[list(items)].mean()
        assert float(results["epoch"]) == pytest.approx(visit * 2 / ITEMS)


def test_canet_stores_its_prediction_in_bytes_for_one_way_only():
    state = abstract_state(tiny_model("canet"), tiny_config(), ITEMS)
    assert (state.rows.shape, state.rows.dtype) == ((ITEMS, 8, 8, 2), jnp.uint8)
    two_way = tiny_config()
    two_way.ways = 2
    assert abstract_state(tiny_model("canet"), two_way, ITEMS).rows is None


class Dice(Method):
    """Notes which of 64 units dropout left."""

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())
        self.drop = nn.Dropout(0.5)

    def encode(self, image, train=False):
        return image

    def segment(self, supports, label, query, image, previous=None, train=False):
        left = self.drop(jnp.ones(64), deterministic=not train)
        return Output(self.scale * jnp.ones((2, 2, 2)), None, row=left)

    def loss(self, output, episode, key, epoch):
        return output.logits.sum(), {"drawn": jax.random.uniform(key)}


def test_dropout_and_the_losss_draws_differ_between_steps_and_episodes_and_repeat_with_the_seed():
    model, config = Dice(backbone=None), tiny_config()
    batch = draw_batch(size=4)
    same = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), batch)
    same = same.replace(query_index=batch.query_index)

    def play(seed):
        step, state = stepper(model, config, seed), draw_state(model, config)
        masks, drawn = [], []
        for _ in range(3):
            state, results = step(state, same)
            masks += [tuple(np.asarray(state.rows)[item]) for item in batch.query_index]
            drawn.append(float(results["drawn"]))
        return masks, drawn

    masks, drawn = play(seed=0)
    assert len(set(masks)) == 6
    assert set(np.unique(masks)) == {0, 2}
    assert len(set(drawn)) == 3
    assert play(seed=0) == (masks, drawn)
    other_masks, other_drawn = play(seed=1)
    assert not set(other_masks) & set(masks)
    assert not set(other_drawn) & set(drawn)


# ----------------------------------------------------------------------------- by name


def config_of(method, backbone="small"):
    config = default_config(method)
    config.backbone = backbone
    if backbone == "small":
        config.model.stages = (5,)
    return config


@pytest.mark.parametrize(
    ("method", "field"),
    [(n, name) for n, m in METHODS.items() for name, f in options_of(m).items() if f.choices],
)
def test_fields_take_their_choices_and_nothing_else(method, field):
    config, choices = config_of(method), options_of(METHODS[method])[field].choices
    assert config.model[field] in choices
    for choice in choices:
        config.model[field] = choice
        assert getattr(create_model(config), field) == choice
    config.model[field] = "nonsense"
    with pytest.raises(UserError, match=rf"model\.{field} = 'nonsense'.*{choices[0]}"):
        create_model(config)


@pytest.mark.parametrize(
    ("backbone", "stages", "unknown"),
    [
        ("small", (1,), 1),
        ("small", (2, 6), 6),
        ("vgg16", (2, 3, 9), 9),
        ("vgg16", (0,), 0),
        ("resnet50", (3, 5), 5),
    ],
)
def test_backbone_must_have_the_stages(backbone, stages, unknown):
    config = config_of("canet", backbone)
    config.model.stages = stages
    with pytest.raises(UserError, match=rf"model\.stages .* {backbone} has no stage {unknown}\b"):
        create_model(config)


@pytest.mark.parametrize("method", METHODS)
def test_model_has_the_fields_of_its_config(method):
    config = config_of(method)
    config.model.stages, config.model.freeze_backbone = (2, 4), True
    model = create_model(config)
    assert type(model) is METHODS[method]
    assert isinstance(model.backbone, Small)
    assert model.stages == (2, 4)
    assert model.frozen == ("backbone",)


def test_unknown_method_and_backbone_are_named_with_the_known_ones():
    config = config_of("panet")
    config.method = "fcn"
    with pytest.raises(UserError, match=r"'fcn'.*panet.*mfnet"):
        create_model(config)
    config = config_of("panet")
    config.backbone = "alexnet"
    with pytest.raises(UserError, match=r"'alexnet'.*vgg16"):
        create_model(config)


class Listed(nn.Module):
    """A backbone with a field that has no hash."""

    widths: dict

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        return (nn.Conv(self.widths["coarse"], (1, 1), strides=8)(image),)


def test_a_field_may_be_of_a_type_without_a_hash():
    model = PANet(backbone=Listed({"coarse": np.array(4)}))
    variables = init_variables(model, jax.random.key(0), 1, 1)
    assert variables["params"]["backbone"]["Conv_0"]["kernel"].shape == (1, 1, 3, 4)
