"""DenseCRF moves predictions to the edges of images, and leaves confident ones alone."""

import importlib.util

import jax
import numpy as np
import pytest
from by_hand import count, make_evaluator
from helpers import in_episode_numbering, message_of

from fsseg_jax.backbones.small import Small
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.evaluation import crf
from fsseg_jax.models import METHODS, init_variables

NEEDED = pytest.mark.skipif(
    not importlib.util.find_spec("pydensecrf"), reason="pydensecrf is not installed"
)
HEIGHT, WIDTH = 40, 56


NO_COLOUR = (80.0, 13.0, 0.0)


def options(**fields):
    config = default_config()
    config.eval.crf.update(iterations=5, **fields)
    return config.eval.crf


def draw(classes=2, noise=0.3, seed=0):
    """An image of bright objects on dark ground, their label, and noisy probabilities."""
    rng = np.random.default_rng(seed)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[8:30, 10:26] = 1
    if classes == 3:
        label[12:34, 34:50] = 2
    colours = np.array([[30, 40, 50], [220, 60, 60], [60, 200, 80]])
    image = np.clip(colours[label] + rng.integers(-4, 5, (HEIGHT, WIDTH, 3)), 0, 255)
    seen = label.copy()
    wrong = rng.random(label.shape) < noise
    seen[wrong] = rng.integers(0, classes, wrong.sum())
    probabilities = np.full((HEIGHT, WIDTH, classes), 0.3 / (classes - 1))
    np.put_along_axis(probabilities, seen[..., None], 0.7, axis=2)
    return image.astype(np.uint8), label, probabilities


@NEEDED
@pytest.mark.parametrize("classes", [2, 3])
def test_a_noisy_prediction_comes_closer_to_the_truth(classes):
    image, label, probabilities = draw(classes)
    before = (probabilities.argmax(axis=-1) != label).mean()
    refined = crf.refine(probabilities, image, options())
    assert refined.shape == label.shape
    assert refined.dtype == np.uint8
    assert set(np.unique(refined).tolist()) <= set(range(classes))
    assert before > 0.1
    assert (refined != label).mean() < before / 5


@NEEDED
def test_what_the_image_shows_counts():
    """The same prediction, an object that is too large, is cut to the object that is there."""
    image, label, _ = draw()
    probabilities = np.full((HEIGHT, WIDTH, 2), [0.8, 0.2])
    probabilities[5:33, 7:29] = [0.45, 0.55]
    too_large = probabilities.argmax(axis=-1)
    refined = crf.refine(probabilities, image, options())
    assert (refined != label).sum() < (too_large != label).sum() / 4
    plain = crf.refine(probabilities, np.full_like(image, 120), options())
    assert (plain != label).sum() > 2 * (refined != label).sum()


@NEEDED
def test_sure_pixels_of_a_uniform_image_stay():
    """Away from borders of the prediction."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for value, expected in ((0.999, 1), (0.001, 0)):
        probabilities = np.full((HEIGHT, WIDTH, 2), [1 - value, value])
        np.testing.assert_array_equal(crf.refine(probabilities, image, options()), expected)
    sure = np.full((HEIGHT, WIDTH, 2), [1 - 1e-7, 1e-7])
    sure[:, WIDTH // 2 :] = sure[:, WIDTH // 2 :, ::-1]
    refined = crf.refine(sure, image, options(colour=NO_COLOUR))
    np.testing.assert_array_equal(refined, sure.argmax(axis=-1))


@NEEDED
def test_nothing_moves_where_neighbours_need_not_agree():
    image, _, probabilities = draw()
    chosen = options(colour=NO_COLOUR, smooth=(3.0, 0.0))
    refined = crf.refine(probabilities, image, chosen)
    np.testing.assert_array_equal(refined, probabilities.argmax(axis=-1))


@NEEDED
def test_probabilities_of_0_and_1_are_no_trouble():
    image, label, _ = draw()
    probabilities = np.eye(2)[label]
    np.testing.assert_array_equal(crf.refine(probabilities, image, options()), label)


# ------------------------------------------------------------------------- in an evaluation


MODEL = METHODS["panet"](backbone=Small(width=16))


def evaluator_of(source, iterations=1, **changes):
    episodes = sample(source.table.items(range(1, 7)), 0, range(5), 2, 1)
    changes = {"batch_size": 4, "crf.iterations": iterations, **changes}
    return make_evaluator(MODEL, source, episodes, 33, **changes)


@pytest.fixture(scope="module")
def variables():
    return init_variables(MODEL, jax.random.key(0), ways=2, shots=1)


@NEEDED
@pytest.mark.parametrize("scored_at", ["network", "photograph"])
def test_scores_are_of_refined_predictions(make_source, variables, scored_at, monkeypatch):
    """Every prediction is refined once, on its image at the size of scoring."""
    source = make_source()
    evaluator = evaluator_of(source, scored_at=scored_at)
    caches = evaluator.encode(variables)
    seen = []
    refine = crf.refine

    def watch(*arguments):
        seen.append((*arguments[:2], refine(*arguments)))
        return seen[-1][2]

    monkeypatch.setattr(crf, "refine", watch)
    scored = evaluator.score(variables, caches)
    counts = scored.borders["ignored"]
    assert len(seen) == len(evaluator.episodes)
    plain = evaluator_of(source, iterations=0, scored_at=scored_at)
    before = plain.score(variables, caches).borders["ignored"]
    assert (counts != before).any()
    for row, (probabilities, image, refined) in enumerate(seen):
        ids = evaluator.episodes.take(row)
        whole = source.read(int(ids.query))
        label = whole.label
        if scored_at == "network":
            shown = evaluator.squares.images[np.unique(evaluator.episodes.images) == ids.query][0]
            label = evaluator.squares.labels[np.unique(evaluator.episodes.images) == ids.query][0]
            np.testing.assert_array_equal(image, shown)
        else:
            np.testing.assert_array_equal(image, whole.image)
        truth = in_episode_numbering(label, ids.classes)
        assert probabilities.shape == (*truth.shape, 3)
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-4)
        wanted = count(probabilities.argmax(axis=-1), truth, 3)
        assert np.abs(wanted - before[row]).max() <= 1  # what is refined is the plain prediction
        np.testing.assert_array_equal(counts[row], count(refined, truth, 3))
        with_border = count(refined, truth, 3, "background")
        np.testing.assert_array_equal(scored.borders["background"][row], with_border)


@NEEDED
@pytest.mark.parametrize("scored_at", ["network", "photograph"])
def test_what_a_letterbox_adds_never_counts(make_source, variables, scored_at, monkeypatch):
    monkeypatch.setattr(crf, "refine", lambda p, *_: p.argmax(axis=-1).astype(np.uint8))
    source = make_source()
    options = {"scored_at": scored_at, "fit": "letterbox"}
    evaluator, plain = (evaluator_of(source, iterations=n, **options) for n in (1, 0))
    caches = evaluator.encode(variables)
    counts, expected = (e.score(variables, caches).borders for e in (evaluator, plain))
    for border, values in counts.items():
        assert np.abs(values - expected[border]).max() <= 1  # a tie
    for row, query in enumerate(evaluator.episodes.query):
        height, width = source.read(int(query)).label.shape
        if scored_at == "network":
            height, width = (n * 33 // max(height, width) // 8 * 8 for n in (height, width))
        assert counts["background"][row, :, [0, 2]].sum() == height * width


def test_without_the_library_one_sentence_says_how_to_get_it(make_source, monkeypatch):
    """Before anything is read."""
    source = make_source()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "densecrf" in name else find(name)
    )
    monkeypatch.setattr(source, "read", lambda index: pytest.fail("an image was read"))
    for call in (crf.check_installed, lambda: evaluator_of(source)):
        message = message_of(call)
        assert "eval.crf.iterations" in message
        assert "pip install 'fsseg_jax[crf]'" in message
