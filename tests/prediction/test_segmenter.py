"""The Segmenter is `forward` on images as they are."""

import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import message_of
from PIL import Image
from segmenters import (
    SIZE,
    Stem,
    assert_same,
    clear,
    draw_variables,
    make_segmenter,
    mask_of,
    softmax,
)

from fsseg_jax import Segmenter
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.squares import square
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.models.panet import PANet
from fsseg_jax.prediction.result import at_own_size

# ----------------------------------------------------------------------------- images


@pytest.mark.parametrize(("height", "width"), [(40, 160), (150, 90), (64, 64), (121, 61)])
def test_a_letterboxed_mask_is_where_the_image_has_it(height, width):
    """Though the image's part of the square is rounded to multiples of 8."""
    segmenter = make_segmenter(fit="letterbox")
    label = np.zeros((height, width), np.uint8)
    label[-height // 4 :, -width // 3 :] = 1
    seen = square(LabelledImage(np.zeros((height, width, 3), np.uint8), label), SIZE, "letterbox")
    logits = np.eye(2, dtype=np.float32)[seen.label % 255]
    align_corners = segmenter.model.align_corners
    mask = at_own_size([logits], (height, width), segmenter.config, align_corners).mask
    sides = [SIZE * n // max(height, width) // 8 * 8 for n in label.shape]
    reach = [math.ceil(n / side) for n, side in zip(label.shape, sides, strict=True)]
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    assert (rows[-1], columns[-1]) == (height - 1, width - 1)
    assert abs(rows[0] - (height - height // 4)) <= reach[0]
    assert abs(columns[0] - (width - width // 3)) <= reach[1]


@pytest.mark.parametrize("align_corners", [True, False])
def test_predictions_are_those_of_the_evaluation_at_image_size(source, align_corners):
    segmenter = make_segmenter(align_corners=align_corners)
    config = segmenter.config.copy_and_resolve_references()
    config.eval.scored_at, config.eval.feature_dtype = "photograph", "float32"
    episodes = sample(source.table.items(range(1, 7)), 0, range(8), ways=1, shots=2)
    evaluator = Evaluator(segmenter.model, source, episodes, make_mesh(1), config)
    cache = evaluator.encode(segmenter.variables)
    found = 0
    for row in range(len(episodes)):
        ids = episodes.take(row)
        supports = [source.read(int(i)).image for i in ids.supports[0]]
        masks = [mask_of(source, int(i), int(ids.classes[0])) for i in ids.supports[0]]
        query = source.read(int(ids.query)).image
        mask, probabilities = segmenter.fit(supports, masks).predict(query, True)
        expected = evaluator.predict(segmenter.variables, cache, row)
        assert mask.shape == expected.shape == query.shape[:2]
        sure = clear(probabilities)
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(mask[sure], expected[sure])
        found += 0.02 < mask.mean() < 0.98
    assert found > 4


def test_probabilities_sum_to_one_and_the_mask_is_the_most_probable_class(fitted, images):
    results = fitted.predict(images, return_probabilities=True)
    for image, (mask, probabilities) in zip(images, results, strict=True):
        assert (mask.dtype, probabilities.dtype) == (np.uint8, np.float32)
        assert mask.shape == image.shape[:2]
        assert probabilities.shape == (*mask.shape, 2)
        assert probabilities.min() >= 0
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        chosen = np.take_along_axis(probabilities, mask[..., None].astype(int), axis=-1)[..., 0]
        np.testing.assert_array_equal(chosen, probabilities.max(axis=-1))
    assert {0, 1} == {*np.unique(mask).tolist()}


@pytest.mark.parametrize("method", ["panet", "canet"])
def test_results_depend_on_neither_batch_nor_order_nor_devices(method, shown, images):
    segmenter = make_segmenter(method).fit(*shown)
    expected = segmenter.predict(images, True, batch_size=1)
    for batch_size in (2, 5, 64):
        assert_same(segmenter.predict(images, True, batch_size), expected)
    order = np.random.default_rng(0).permutation(len(images))
    results = segmenter.predict([images[i] for i in order], True, batch_size=4)
    assert_same(results, [expected[i] for i in order])
    several = make_segmenter(method, devices=4).fit(*shown)
    assert_same(several.predict(images, True, batch_size=6), expected)


def test_one_or_several_images_in_any_form(fitted, images, tmp_path):
    few = [np.ascontiguousarray(image[:32, :13]) for image in images[2:5]]
    expected = fitted.predict(few)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, few, strict=True):
        Image.fromarray(image).save(path)
    texts = [str(path) for path in paths]
    pictures = [Image.open(path) for path in paths]
    lists = (paths, texts, pictures, np.array(texts), np.stack(few), jnp.stack(few), tuple(few))
    for several in (*lists, (x for x in few), dict(enumerate(few)).values()):
        for result, mask in zip(fitted.predict(several), expected, strict=True):
            np.testing.assert_array_equal(result, mask)
    for one in (paths[0], texts[0], pictures[0], few[0], jnp.asarray(few[0])):
        result = fitted.predict(one)
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, expected[0])
    assert fitted.predict([]) == []
    assert len(fitted.predict([few[0]])) == 1


# ----------------------------------------------------------------------------- supports


def draw_supports(*classes, size=SIZE, seed=0):
    """Images of the network's own size, and masks with a block of each of their classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(classes), size, size, 3), np.uint8)
    masks = np.zeros((len(classes), size, size), np.uint8)
    for mask, numbers in zip(masks, classes, strict=True):
        for number in numbers:
            top, left = rng.integers(0, size - 12, 2)
            mask[top : top + 12, left : left + 12] = number
    return images, masks


@pytest.mark.parametrize("method", ["panet", "canet"])
def test_classes_with_fewer_images_use_theirs_again(method):
    """Images show class 1; 2; 1 and 2; 1; so that class 2 has one less."""
    segmenter = make_segmenter(method, devices=1)
    images, masks = draw_supports([1], [2], [2, 1], [1])
    assert [sorted({*np.unique(mask).tolist()} - {0}) for mask in masks] == [[1], [2], [1, 2], [1]]
    rows = [[0, 2, 3], [1, 2, 1]]
    query = draw_supports([1], seed=1)[0][0]
    expected = segmenter.forward(images[np.array(rows)], masks[np.array(rows)], query[None])[0]
    segmenter.fit(images, masks, classes=["cat", "dog"])
    assert segmenter.classes == ("cat", "dog")
    mask, probabilities = segmenter.predict(query, True)
    assert probabilities.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(probabilities, softmax(expected), atol=1e-4)
    sure = clear(softmax(expected))
    np.testing.assert_array_equal(mask[sure], np.argmax(expected, axis=-1)[sure])
    assert segmenter.fit(images, masks).classes == ("1", "2")


def test_boxes_are_masks_of_what_is_inside_of_them(shown, images):
    segmenter, supports = make_segmenter(), shown[0]
    boxes = [(3, 2, 20, 13), [(0, 0, 9, 9), (12, 5, 22, 14)]]
    masks = [np.zeros(image.shape[:2], bool) for image in supports]
    masks[0][2:13, 3:20] = True
    masks[1][:9, :9] = masks[1][5:14, 12:22] = True
    expected = segmenter.fit(supports, masks=masks).predict(images, True)
    assert_same(segmenter.fit(supports, boxes=boxes).predict(images, True), expected)


def test_a_single_support_needs_no_list(shown, images, tmp_path):
    segmenter, image, mask = make_segmenter(), shown[0][0], shown[1][0]
    expected = segmenter.fit([image], [mask]).predict(images[:3], True)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    paths = (tmp_path / "image.png", tmp_path / "mask.png")
    for form in ((image, mask), (str(paths[0]), paths[1]), map(Image.open, paths)):
        assert_same(segmenter.fit(*form).predict(images[:3], True), expected)
    boxed = segmenter.fit([image], boxes=[(3, 2, 20, 13)]).predict(images[:3], True)
    assert_same(segmenter.fit(image, boxes=(3, 2, 20, 13)).predict(images[:3], True), boxed)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_an_object_too_small_for_the_square_is_not_lost(fit):
    """One pixel of a large image, anywhere, becomes one pixel of the square there."""
    rng = np.random.default_rng(0)
    segmenter = make_segmenter(fit=fit)
    for height, width in ((200, 300), (300, 150)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for y, x in ((0, 0), (height - 1, width - 1), (67, 149), (101, 33)):
            mask = np.zeros((height, width), np.uint8)
            mask[y, x] = 1
            segmenter.fit([image], [mask])
            label = segmenter.fitted.labels
            sides = (SIZE, SIZE)
            if fit == "letterbox":
                # Multiples of 8, rounded down: see `squares.fitted`.
                sides = [SIZE * side // max(height, width) // 8 * 8 for side in (height, width)]
            where = [int((y + 0.5) * sides[0] / height), int((x + 0.5) * sides[1] / width)]
            assert np.argwhere(np.asarray(label[0, 0]) == 1).tolist() == [where]
            assert segmenter.predict(image).any()


encoded = []  # the sum of each image that the backbone was given


class Watched(nn.Module):
    """A backbone that notes what it encodes."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        for one in image.reshape(-1, *image.shape[-3:]):
            jax.debug.callback(lambda total: encoded.append(round(float(total), 2)), one.sum())
        return Stem()(image)


def test_supports_are_encoded_once_and_queries_too(shown, images):
    config = make_segmenter().config
    model = PANet(backbone=Watched())
    segmenter = Segmenter(config, model, draw_variables(model, 1, 1), make_mesh(1))
    jax.effects_barrier()
    encoded.clear()
    segmenter.fit(*shown)
    jax.effects_barrier()
    supports = {*encoded}
    assert len(encoded) == len(supports) == 2
    encoded.clear()
    for _ in range(2):
        segmenter.predict(images[-4:], batch_size=2)
    jax.effects_barrier()
    assert not supports & {*encoded}
    assert [encoded.count(one) for one in {*encoded}] == [2] * 4


IMAGE, MASK = np.zeros((8, 9, 3), np.uint8), np.eye(8, 9, dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": [IMAGE]}, "masks, boxes, scribbles and points: none was given"),
        (
            {"images": [IMAGE], "masks": [MASK], "boxes": [(0, 0, 3, 3)]},
            "masks, boxes, scribbles and points: masks and boxes was given",
        ),
        ({"images": [], "masks": []}, r"images = \[\]: give at least one"),
        ({"images": 3, "masks": [MASK]}, "images = 3: give a list"),
        ({"images": [IMAGE], "masks": "mask.png"}, "masks = 'mask.png': give a list"),
        ({"images": [IMAGE] * 3, "masks": [MASK] * 2}, "masks has 2 entries, but images has 3"),
        ({"images": [IMAGE], "boxes": []}, "boxes has 0 entries, but images has 1"),
        ({"images": [IMAGE, None], "masks": [MASK] * 2}, r"images\[1\] is an array of object"),
        ({"images": [IMAGE / 255], "masks": [MASK]}, r"images\[0\] is an array of float64"),
        ({"images": ["absent.png"], "masks": [MASK]}, "absent.png cannot be read"),
        ({"images": [IMAGE], "masks": ["absent.png"]}, "absent.png cannot be read"),
        ({"images": [IMAGE], "masks": [MASK.T]}, r"masks\[0\] is 8 x 9 pixels, but images\[0\] is"),
        ({"images": [IMAGE] * 2, "masks": [MASK * 0, MASK * 0]}, "No support shows a class"),
        ({"images": [IMAGE], "boxes": [(5, 5, 2, 2)]}, r"boxes\[0\] has the box \(5, 5, 2, 2\)"),
        (
            {"images": [IMAGE], "masks": [MASK], "classes": ["cat", "dog"]},
            r"classes = \('cat', 'dog'\): 2 names, but masks number 1 class\.",
        ),
        *(
            ({"images": [IMAGE], "masks": [MASK], "classes": classes}, sentence)
            for classes, sentence in (
                ("cat", "classes = 'cat': give a list with one entry per class"),
                ({"cat"}, r"classes = {'cat'}: give a list"),
                (3, "classes = 3: give a list"),
                ([3], "classes has the name 3: give a text"),
                ([""], "classes has the name ''"),
                (["cat", "cat"], r"classes = \('cat', 'cat'\): two have the same name"),
            )
        ),
        ({"images": np.array(None), "masks": [MASK]}, "images = array.*: give a list"),
        ({"images": [IMAGE], "masks": {1}}, "masks = .1.: give a list"),
        ({"images": [[[1], [2, 3]]], "masks": [MASK]}, r"images\[0\] is of type list: give a path"),
        ({"images": [Image.new("RGB", (0, 5))], "masks": [MASK]}, r"images\[0\] has no pixels"),
        ({"images": [IMAGE], "boxes": [(0, 0, 10**400, 5)]}, r"boxes\[0\] = "),
        (  # classes that coincide in the square
            {
                "images": [np.zeros((300, 400, 3), np.uint8)],
                "masks": [np.pad([[1, 2]], ((100, 199), (200, 198)))],
            },
            r"masks\[0\] shows class 1 in so few pixels .* = 32: ",
        ),
    ],
)
def test_wrong_supports_are_told(arguments, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        make_segmenter().fit(**arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": 3}, "images is of type int: give an iterable"),
        ({"images": None}, "images is of type NoneType"),
        ({"images": [IMAGE, 3]}, r"images\[1\] is an array of int64 and shape \(\)"),
        ({"images": [IMAGE], "batch_size": 0}, "batch_size = 0: it must be an integer of at least"),
        ({"images": [IMAGE], "batch_size": 2.5}, "batch_size = 2.5: it must be an integer"),
        ({"images": [IMAGE], "batch_size": None}, "batch_size = None: it must be an integer"),
        ({"images": np.array(3)}, "images is of type ndarray: give an iterable"),
    ],
)
def test_wrong_queries_are_told(fitted, options, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        fitted.predict(**options)
    with pytest.raises(UserError, match=r"^images is of type str: give an iterable"):
        fitted.stream("image.jpg")  # `predict` takes a single one


def test_predicting_before_fit_is_told():
    segmenter = make_segmenter()
    new = Segmenter(segmenter.config, segmenter.model, segmenter.variables, make_mesh(1))
    for call in (new.predict, new.stream):
        with pytest.raises(UserError, match=r"^predict: call fit first"):
            call([IMAGE])


def test_what_is_no_file_is_told_without_waiting_for_it(fitted, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        message = message_of(fitted.predict, path)
        assert message == f"{path} cannot be read (it is not a file): give an image."
        assert message_of(fitted.fit, [IMAGE], [path]) == message


@pytest.mark.parametrize("folder", [None, 3, "", b"x", "a\0b"])
def test_what_is_no_folder_is_told(folder):
    for method in (make_segmenter().save_pretrained, make_segmenter().push_to_hub):
        assert f"= {folder!r}: give" in message_of(method, folder)
