"""Presets draw and score as the published codes do: compared with `published_codes`, which was
written from reading those.

Random generators differ, so that episodes are not the same ones. What must be the same:
what is drawn from and how often, and with which chances; and of the same predictions every pixel
count and every figure.
"""

import collections
import itertools

import jax
import numpy as np
import published_codes as codes
import pytest
from by_hand import Stem, count
from helpers_coco import CATEGORIES, Drawn, rectangle
from PIL import Image
from scipy import stats

from fsseg_jax.config import default_config, override
from fsseg_jax.data import open_source
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.sources.coco import FOLDS
from fsseg_jax.data.squares import fitted, square
from fsseg_jax.devices import make_mesh
from fsseg_jax.evaluation import scoring
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.evaluation.metrics import run_metrics
from fsseg_jax.evaluation.protocol import draw_episodes, protocol_episodes
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.models.panet import PANet
from fsseg_jax.training.checkpoints import Loaded

NOVEL = (1, 2, 3, 4, 5)
SIZE = 41  # of the network: 8 n + 1, as PFENet's 473 and 641
NEVER = 1e-4  # so improbable is what no test may find: seeds are fixed


@pytest.fixture(scope="module")
def source(make_source):
    """Images twice or three times as large as usual: many objects pass the area filter, and
    many do not."""
    small = make_source(images=40, classes=10, shown=3)
    large = [
        [part.repeat(2 + number % 2, 0).repeat(2 + number % 2, 1) for part in parts]
        for number, parts in enumerate(small.images)
    ]
    return type(small)(large, small.classes, small.folds)


@pytest.fixture(scope="module")
def labels(source):
    labels = [label for _, label, _ in source.images]
    counts = [[(label == c).sum() for c in NOVEL] for label in labels]
    below = (np.array(counts) > 0) & (np.array(counts) < codes.AREA)
    listed = (np.array(counts) >= codes.AREA).any(axis=1)
    assert below[listed].any()  # listed images show objects that are too small too
    assert below[~listed].any()
    assert (~below & (np.array(counts) > 0)).sum(axis=1).max() > 1  # and several that are not
    return labels


def preset(name, data="voc", **changes):
    given = {"eval.protocol": name, "data.name": data, **changes}
    return override(default_config(), [f"--config.{key}={value}" for key, value in given.items()])


def draw(source, config, count=None, seed=0):
    """Our episodes of a preset, as `Drawn`."""
    episodes = draw_episodes(config, source, "novel", seed, count)
    items = source.table.items(source.folds[0], config.data.min_pixels)
    rows = [
        (class_id, image)
        for class_id, start, number in zip(items.class_id, items.start, items.count, strict=True)
        for image in items.image[start : start + number]
    ]
    drawn = []
    for row in range(len(episodes)):
        ids = episodes.take(row)
        classes = tuple(ids.classes.tolist())
        supports = tuple(map(tuple, ids.supports.tolist()))
        asked = classes[0] if len(classes) == 1 else int(rows[ids.query_index][0])
        drawn.append(codes.Drawn(classes, supports, int(ids.query), asked))
    return drawn


def published(name, data, labels, count, shots=1, ways=1):
    """The published code's episodes."""
    rng = np.random.default_rng(1)
    if name == "panet":
        return codes.panet_draw(labels, NOVEL, rng, count, ways, shots)
    if name == "canet":
        return codes.canet_draw(labels, NOVEL, rng, count)
    if name in ("pfenet", "bam"):
        return codes.pfenet_draw(labels, NOVEL, rng, count, shots)
    of_data = codes.hsnet_coco_draw if data == "coco" else codes.hsnet_draw
    return of_data(labels, NOVEL, rng, count, shots)


def items(drawn):
    return collections.Counter((episode.asked, episode.query) for episode in drawn)


def alike(ours, theirs):
    """Whether two lists of outcomes may come from the same chances (a chi-squared test)."""
    one, other = collections.Counter(ours), collections.Counter(theirs)
    outcomes = sorted(set(one) | set(other))
    table = np.array([[counts[outcome] for outcome in outcomes] for counts in (one, other)])
    rare = table.sum(axis=0) < 20
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
    table = table[:, table.sum(axis=0) > 0]
    assert table.shape[1] > 1
    return stats.chi2_contingency(table).pvalue > NEVER


def test_alike_tells_chances_apart():
    rng = np.random.default_rng(0)
    even = rng.integers(0, 10, 4000)
    assert alike(even.tolist(), rng.integers(0, 10, 4000).tolist())
    uneven = rng.choice(10, 4000, p=[0.13, 0.07, *[0.1] * 8])
    assert not alike(even.tolist(), uneven.tolist())


# ----------------------------------------------------------------------------- test images


def test_panet_tests_images_of_trainaug(make_voc):
    root = make_voc(train=6, val=4)
    lists = root / "ImageSets" / "Segmentation"
    names = (lists / "train.txt").read_text().split()
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in names[1:]))
    tested = {
        name: open_source(preset(name, **{"data.root": root}).data, "test").ids
        for name in ("panet", "canet", "pfenet", "hsnet", "bam")
    }
    assert list(tested.pop("panet")) == names[1:]
    val = (lists / "val.txt").read_text().split()
    assert all(list(ids) == val for ids in tested.values())


def test_each_category_of_coco_has_a_mask_of_its_own_for_panet(tmp_path):
    rng, size = np.random.default_rng(0), (20, 30)
    folder = Drawn(tmp_path, "train2014", rng)
    for image in (7, 3, 12):
        folder.add_image(image, size)
        chosen = rng.choice(CATEGORIES, 4, replace=False).tolist()
        for number, category in enumerate([*chosen, *chosen[:2]]):  # large enough to overlap
            left, top = rng.integers(0, 8, 2).tolist()
            mask = rectangle(size, top, top + 10, left, left + 15)
            crowd = number == 3  # the only one of its category
            folder.add_object(image, category, mask, "runs" if crowd else "polygon", crowd)
    file = folder.write().file

    source = open_source(preset("panet", "coco", **{"data.root": tmp_path}).data, "test")
    expected = {
        (f"{image:012d}", number): mask
        for (image, number), mask in codes.panet_coco_masks(str(file)).items()
    }
    found = {}
    for index, label in enumerate(source.read(index).label for index in range(len(source))):
        (number,) = np.unique(label[label > 0]).tolist()
        found[source.ids[index].split(":")[0], number] = label > 0
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in found)
    # It matters here: what one pixel shows is of several categories.
    of_image = [mask for (image, _), mask in expected.items() if int(image) == 7]
    assert (np.sum(of_image, axis=0) > 1).any()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("panet", codes.coco_split_a),
        ("pfenet", codes.coco_split_b),
        ("hsnet", codes.coco_split_b),
        ("bam", codes.coco_split_b),
    ],
)
def test_classes_that_folds_of_coco_hold_out(name, split):
    folds = FOLDS[preset(name, "coco").data.coco.folds]
    assert folds == tuple(split(fold) for fold in range(4))


# ----------------------------------------------------------------------------- in turn


@pytest.mark.parametrize("name", ["canet", "hsnet"])
def test_items_take_turns(name, source, labels):
    """Whole passes over the list are the same items; of a part of a pass there are as many.

    HSNet's code goes through its list in the order of the names, again and again; CANet's does so
    once, and twice in a random order. Ours is random in each pass, so that an evaluation that is
    shorter than a pass is no selection of the first names.
    """
    config = preset(name)
    passes = sum(map(len, codes.shown_by_class(labels, NOVEL, codes.AREA).values()))
    assert 5 < passes < sum(map(len, codes.shown_by_class(labels, NOVEL).values()))
    ours = draw(source, config, 2 * passes + 3)
    theirs = published(name, "voc", labels, 2 * passes + 3)
    for start in (0, passes):
        turn = slice(start, start + passes)
        assert items(ours[turn]) == items(theirs[turn])
        assert set(items(ours[turn]).values()) == {1}
    assert sorted(items(ours).values()) == sorted(items(theirs).values())
    by_class = [collections.Counter(e.asked for e in drawn[:passes]) for drawn in (ours, theirs)]
    assert by_class[0] == by_class[1]


@pytest.mark.parametrize("name", ["pfenet", "bam"])
def test_images_take_turns(name, source, labels):
    """Images with an item, each once a pass; ours in an order of the pass's own, the codes' in
    that of the list. The class is one of all that the image shows, be it too small to be an
    item; supports are items."""
    config = preset(name)
    lists = codes.shown_by_class(labels, NOVEL, codes.AREA)
    listed = set(itertools.chain.from_iterable(lists.values()))
    assert listed < set(range(len(labels)))
    passes, count = len(listed), 60 * len(listed)
    ours, theirs = draw(source, config, count), published(name, "voc", labels, count)
    for drawn in (ours, theirs):
        turns = np.reshape([episode.query for episode in drawn], (60, passes))
        assert all(set(turn) == listed for turn in turns.tolist())
        assert len(np.unique(turns, axis=0)) == (60 if drawn is ours else 1)
        assert any(e.query not in lists[e.asked] for e in drawn)
        assert all(support in lists[e.asked] for e in drawn for support in e.supports[0])
    assert set(items(ours)) == set(items(theirs))
    assert alike(items(ours).elements(), items(theirs).elements())


def test_each_image_of_fss1000_is_a_query_once(make_source):
    """Of every test class, without an area filter: 2,400 queries."""
    classes = [f"class {number}" for number in range(240)]
    labels = [np.full((3, 3), number // 10 + 1, np.uint8) for number in range(2400)]
    images = [(np.zeros((3, 3, 3), np.uint8), label, None) for label in labels]
    ids = tuple(range(1, 241))
    source = type(make_source())(images, classes, (ids,))
    config = preset("hsnet", "fss1000")
    (episodes,) = protocol_episodes(config, source).values()
    ours = draw(source, config)
    assert [episode.query for episode in ours] == episodes.query.tolist()
    # Of ten classes, as the code's lists take long to make.
    theirs = codes.hsnet_fss_draw(labels[:100], ids[:10], np.random.default_rng(0))
    assert sorted(episode.query for episode in ours) == list(range(2400))
    first = [episode for episode in ours if episode.query < 100]
    assert items(first) == items(theirs)
    for episode in ours:
        ((support,),) = episode.supports
        assert support // 10 == episode.query // 10
        assert support != episode.query


# ----------------------------------------------------------------------------- at random


@pytest.mark.parametrize("ways", [1, 2])
def test_panet_draws_classes_and_images_alike(ways, source, labels):
    config = preset("panet", ways=ways)
    ours = draw(source, config, 4000)
    theirs = published("panet", "voc", labels, 4000, ways=ways)
    everything = {(c, i) for c, shown in codes.shown_by_class(labels, NOVEL).items() for i in shown}
    assert set(items(ours)) == set(items(theirs)) == everything  # no area filter
    assert alike(items(ours).elements(), items(theirs).elements())
    assert alike([e.classes for e in ours], [e.classes for e in theirs])
    # The code's query is from the same way all through a run, and classes are in random order.
    chosen = [e.classes.index(e.asked) for e in ours]
    assert ways == 1 or alike(chosen, np.tile(range(ways), 2000).tolist())


def test_hsnet_draws_classes_and_images_of_coco_alike(source, labels):
    ours = draw(source, preset("hsnet", "coco"), 4000)
    theirs = published("hsnet", "coco", labels, 4000)
    lists = codes.shown_by_class(labels, NOVEL, codes.AREA)
    assert set(items(ours)) == set(items(theirs)) == {(c, i) for c in NOVEL for i in lists[c]}
    assert alike(items(ours).elements(), items(theirs).elements())
    assert alike([e.asked for e in ours], [e.asked for e in theirs])
    for drawn in (ours, theirs):  # not in turn: some come again before others come at all
        assert max(items(drawn[: len(items(drawn))]).values()) > 1


@pytest.mark.parametrize(
    ("name", "data", "shots"),
    [
        ("panet", "voc", 1),
        ("panet", "voc", 2),
        ("canet", "voc", 1),
        ("pfenet", "voc", 1),
        ("pfenet", "voc", 2),
        ("bam", "coco", 2),
        ("hsnet", "voc", 1),
        ("hsnet", "voc", 2),
        ("hsnet", "coco", 1),
    ],
)
def test_supports_are_other_images_of_the_class(name, data, shots, source, labels):
    """Uniformly drawn; ours are distinct, as PANet's, PFENet's and BAM's are.

    HSNet's code may take one image twice. Among its episodes that do not, chances are ours.
    """
    count = 6000
    ours = draw(source, preset(name, data, shots=shots), count)
    if name == "canet":  # its list ends after three passes
        rng = np.random.default_rng(1)
        theirs = [codes.canet_draw(labels, NOVEL, rng, count) for _ in range(90)]
        theirs = list(itertools.chain.from_iterable(theirs))
    else:
        theirs = published(name, data, labels, count, shots)
    for drawn in (ours, theirs):
        assert all(e.query not in e.supports[0] for e in drawn)
    assert all(len(set(e.supports[0])) == shots for e in ours)
    repeating = [len(set(e.supports[0])) < shots for e in theirs]
    assert any(repeating) == (name == "hsnet" and shots > 1)
    theirs = [e for e, repeats in zip(theirs, repeating, strict=True) if not repeats]
    together = [[(e.asked, *sorted(e.supports[0])) for e in drawn] for drawn in (ours, theirs)]
    assert alike(*together)
    if shots == 1:  # of more there are too many combinations
        beside = [[(e.query, e.asked, *e.supports[0]) for e in drawn] for drawn in (ours, theirs)]
        assert alike(*beside)


# ----------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [SIZE, 473, 641])
def test_pfenets_squares_have_sides_of_multiples_of_8(size):
    rng = np.random.default_rng(size)
    shapes = [*rng.integers(20, 700, (300, 2)).tolist(), [500, 375], [480, 640], [size, size]]
    for height, width in shapes:
        expected = codes.pfenet_shape(height, width, size)
        if min(expected) > 0:  # a side of less than 8 would vanish there
            assert fitted((height, width), size, "letterbox") == expected


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (90, 120), (16, 16)])
def test_pfenets_squares_are_black_and_ignored_beside_the_image(shape):
    """Small images are enlarged. (Its bilinear interpolation does not smooth what it shrinks,
    and ours does, as PIL's: what an image looks like differs a little.)"""
    whole = LabelledImage(np.full((*shape, 3), 200, np.uint8), np.ones(shape, np.uint8))
    image, label = square(whole, SIZE, "letterbox")
    inside = np.zeros((SIZE, SIZE), bool)
    inside[tuple(slice(side) for side in codes.pfenet_shape(*shape, SIZE))] = True
    np.testing.assert_array_equal(label, np.where(inside, 1, 255))
    np.testing.assert_array_equal(image, np.where(inside, 200, 0)[..., None].repeat(3, axis=2))


# ----------------------------------------------------------------------------- pixels


@pytest.fixture(scope="module")
def model():
    return PANet(backbone=Stem())


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0), np.zeros((SIZE, SIZE, 3), np.float32), method="encode")


def score(config, source, model, variables):
    """An evaluator of 12 episodes, counts of pixels by what the border is, and predictions."""
    config.image_size, config.eval.buckets, config.eval.feature_dtype = SIZE, 1, "float32"
    episodes = draw_episodes(config, source, "novel", 0, 12)
    evaluator = Evaluator(model, source, episodes, make_mesh(1), config)
    caches = evaluator.encode(variables)
    counts = evaluator.score(variables, caches)
    predictions = [evaluator.predict(variables, caches, row) for row in range(12)]
    assert all(len(np.unique(prediction)) > 1 for prediction in predictions)
    return evaluator, counts.borders, predictions


def areas_of(counts):
    """Intersections and unions of rows of counts."""
    return counts[..., 0], counts.sum(axis=-1)


@pytest.mark.parametrize("ways", [1, 2])
def test_panets_pixel_counts(ways, source, labels, model, variables):
    """At the network's size, without borders; what is skipped there is kept apart here."""
    config = preset("panet", ways=ways)
    evaluator, borders, predictions = score(config, source, model, variables)
    episodes = evaluator.episodes
    for row, prediction in enumerate(predictions):
        ids = episodes.take(row)
        target = codes.panet_target(labels[ids.query], ids.classes.tolist(), SIZE)
        expected = codes.panet_counts(prediction, target, ways)
        counts, shown = borders["ignored"][row], np.isfinite(expected[:, 0])
        np.testing.assert_array_equal(counts[shown], expected[shown])
        assert not counts[~shown][:, [0, 2]].any()
    assert config.eval.border == "ignored"
    check_stretched(evaluator)


def check_stretched(evaluator):
    """The network sees squares (PANet's dataloaders/transforms.py, line 49; HSNet's
    data/dataset.py, line 26)."""
    for index, image in zip(evaluator.used, evaluator.squares.images, strict=True):
        whole = Image.fromarray(evaluator.source.read(index).image)
        np.testing.assert_array_equal(image, whole.resize((SIZE, SIZE), Image.BILINEAR))


def test_canets_pixel_counts(source, labels, model, variables):
    """At each image's own size, where its author scores the published figures (issue 4 of the
    repository; the code's own quick validation scores squares). Borders are background."""
    config = preset("canet")
    evaluator, borders, predictions = score(config, source, model, variables)
    episodes = evaluator.episodes
    found = []
    for row, prediction in enumerate(predictions):
        label, (class_id,) = labels[episodes.query[row]], episodes.classes[row]
        found.append(codes.areas(prediction, codes.canet_target(label, class_id)))
        inter, union = areas_of(borders[config.eval.border][row])
        assert (inter[1], union[1]) == (found[-1][0][1], found[-1][1][1])
        assert borders["background"][row].sum() > borders["ignored"][row].sum()
    (bucket,) = evaluator.buckets
    for view, scale in zip(bucket.queries.views, codes.CANET_SCALES, strict=True):
        for query, shape in zip(bucket.images, view.shape, strict=True):
            assert np.abs(shape - scale * np.array(labels[query].shape)).max() <= 0.5
    figures = run_metrics(borders[config.eval.border], episodes.classes, source.class_names)
    expected = codes.figures(found, draw(source, config, 12))
    assert figures["mean_iou"] == pytest.approx(expected["mean_iou"])


@pytest.mark.parametrize(
    ("name", "data"), [("pfenet", "voc"), ("bam", "voc"), ("hsnet", "voc"), ("hsnet", "coco")]
)
def test_pixel_counts_of_pfenet_bam_and_hsnet(name, data, source, labels, model, variables):
    """PFENet's and BAM's at the image's own size, where nothing counts on what stands beside it, a
    square's rest. HSNet's at the network's size: PyTorch's "nearest", by which its code shrinks
    labels, takes the pixel under the corner of the new one; ours, for all protocols, that under its
    centre, as PIL does."""
    config = preset(name, data)
    evaluator, borders, predictions = score(config, source, model, variables)
    episodes = evaluator.episodes
    found = []
    for row, prediction in enumerate(predictions):
        label, (class_id,) = labels[episodes.query[row]], episodes.classes[row]
        if name == "hsnet":
            target = codes.hsnet_target(codes.nearest(label, SIZE), class_id)
            whole = prediction
        else:
            target = codes.pfenet_target(label, class_id)
            whole = np.ones_like(target)  # whatever it is outside
            whole[: label.shape[0], : label.shape[1]] = prediction
        found.append(codes.areas(whole, target))
        np.testing.assert_array_equal(areas_of(borders["ignored"][row]), found[-1])
    # The codes leave a class that was never drawn in the mean, as 0; a full run has none.
    figures = run_metrics(borders["ignored"], episodes.classes, source.class_names)
    expected = codes.figures(found, draw(source, config, 12))
    for field in ("mean_iou", "mean_iou_star"):
        assert figures[field] == pytest.approx(expected["mean_iou"])
    for field in ("binary_iou", "binary_iou_shown", "binary_iou_merged"):
        assert figures[field] == pytest.approx(expected["binary_iou"])
    assert config.eval.border == "ignored"
    if name == "hsnet":
        check_stretched(evaluator)
        return
    for index, image in zip(evaluator.used, evaluator.squares.images, strict=True):
        height, width = codes.pfenet_shape(*labels[index].shape, SIZE)
        assert not image[height:].any()
        assert not image[:, width:].any()
        assert image[:height, :width].any(axis=(1, 2)).all()


# ----------------------------------------------------------------------------- figures


@pytest.mark.parametrize("ways", [1, 3])
def test_panets_figures(ways):
    """Of maps at random, from which classes and even the background are missing here and there."""
    rng = np.random.default_rng(ways)
    runs, ours = [], []
    for _ in range(3):
        run, counts = [], []
        for _ in range(60):
            chosen = rng.permutation(NOVEL)[:ways].tolist()
            numbers = rng.permutation(ways + 1)[: rng.integers(1, ways + 2)]
            target = rng.choice([*numbers, 255], (9, 9)).astype(np.uint8)
            prediction = rng.integers(0, ways + 1, (9, 9))
            run.append((codes.panet_counts(prediction, target, ways), chosen))
            counts.append(count(prediction, target, ways + 1))
        runs.append(run)
        chosen = np.array([chosen for _, chosen in run])
        ours.append(run_metrics(np.stack(counts), chosen, {c: str(c) for c in NOVEL}))
    expected = codes.panet_figures(runs, NOVEL)
    for name, field in (("mean_iou", "mean_iou"), ("binary_iou", "binary_iou_shown")):
        values = [figures[field] for figures in ours]
        assert np.mean(values) == pytest.approx(expected[name])
        assert np.std(values) == pytest.approx(expected[f"{name}_std"])
    if ways > 1:  # the other definitions are other figures
        for name in ("mean_iou_star", "binary_iou", "binary_iou_merged"):
            assert ours[0][name] != pytest.approx(ours[0]["binary_iou_shown"], abs=0.1)


def test_figures_over_runs_are_panets(source, labels, model, variables, monkeypatch, tmp_path):
    """In results.json: means and standard deviations over runs, from what was predicted."""
    kept = []

    class Keeping(Evaluator):
        def score(self, variables, caches, model=None):
            for row in range(len(self.episodes)):
                kept.append((self.episodes.take(row), self.predict(variables, caches, row)))
            return super().score(variables, caches, model)

    monkeypatch.setattr(scoring, "Evaluator", Keeping)
    config = preset("panet", ways=2, **{"eval.runs": 3, "eval.episodes": 10, "eval.gallery": 0})
    config.image_size = SIZE
    results = evaluate(config, model, Loaded(variables, "none"), source, make_mesh(1), tmp_path)
    pairs = []
    for ids, prediction in kept:
        classes = ids.classes.tolist()
        target = codes.panet_target(labels[ids.query], classes, SIZE)
        pairs.append((codes.panet_counts(prediction, target, 2), classes))
    expected = codes.panet_figures([pairs[:10], pairs[10:20], pairs[20:]], NOVEL)
    for name, field in (("mean_iou", "mean_iou"), ("binary_iou", "binary_iou_shown")):
        assert results[field] == pytest.approx(expected[name])
        assert results[f"{field}_std"] == pytest.approx(expected[f"{name}_std"])
