"""Scores are those of the model, whatever the batch, and what is written can be trusted."""

import csv
import json

import by_hand
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import count
from helpers import calls_of, in_episode_numbering, message_of

from fsseg_jax.backbones.small import Small
from fsseg_jax.config import default_config
from fsseg_jax.data.sampling import sample
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import make_mesh
from fsseg_jax.episode import Episode, EpisodeIds, episodes_hash, normalise, read_episodes
from fsseg_jax.evaluation import run as evaluation_run
from fsseg_jax.evaluation import scoring
from fsseg_jax.evaluation.evaluator import Evaluator
from fsseg_jax.evaluation.metrics import episode_iou, run_metrics
from fsseg_jax.evaluation.parts import portions
from fsseg_jax.evaluation.protocol import draw_episodes
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.evaluation.scorer import THRESHOLDS, Counts
from fsseg_jax.evaluation.summary import comparisons, summary
from fsseg_jax.models import init_variables
from fsseg_jax.models.panet import PANet
from fsseg_jax.training.checkpoints import Loaded

SIZE = 32
encoded = []  # the sum of each image that the backbone was given


class Watched(nn.Module):
    """The small backbone, which notes what it encodes."""

    @nn.compact
    def __call__(self, image, stages=(), train=False):
        jax.debug.callback(lambda total: encoded.append(float(total)), image.sum())
        return Small(width=16)(image, stages, train=train)


@pytest.fixture(scope="module")
def source(make_source):
    return make_source()


@pytest.fixture(scope="module")
def model():
    return PANet(backbone=Watched())


@pytest.fixture(scope="module")
def variables(model):
    return init_variables(model, jax.random.key(0), ways=2, shots=2)


@pytest.fixture(scope="module")
def episodes(source):
    return sample(source.table.items(range(1, 7)), 0, range(7), ways=2, shots=2)


def make_evaluator(model, source, episodes, batch_size=3, devices=1, **options):
    options["batch_size"] = batch_size
    return by_hand.make_evaluator(model, source, episodes, SIZE, devices, **options)


@pytest.fixture(scope="module")
def scored_all(model, source, variables, episodes):
    evaluator = make_evaluator(model, source, episodes)
    return evaluator.score(variables, evaluator.encode(variables))


@pytest.fixture(scope="module")
def counts(scored_all):
    return scored_all.borders["ignored"]


def ignored(evaluator, variables):
    """Counts without the border of objects."""
    return evaluator.score(variables, evaluator.encode(variables)).borders["ignored"]


def test_score_is_that_of_the_model_applied_to_each_episode(
    model, source, variables, episodes, scored_all
):
    """Without the cache, the evaluator's resizing or its counting."""
    apply = jax.jit(model.apply)
    for row in range(len(episodes)):
        ids = episodes.take(row)
        supports = [[read_square(source, i, SIZE) for i in shots] for shots in ids.supports]
        image, label = read_square(source, int(ids.query), SIZE)
        episode = Episode(
            support_image=np.array([[pair[0] for pair in shots] for shots in supports]),
            support_label=np.array(
                [[in_episode_numbering(y, ids.classes) for _, y in shots] for shots in supports]
            ),
            query_image=image,
            query_label=in_episode_numbering(label, ids.classes),
            class_id=ids.classes,
            query_index=ids.query_index,
        )
        logits = apply(variables, episode.normalised()).logits
        assert logits.shape == (SIZE // 4, SIZE // 4, 3)
        logits = jax.image.resize(logits, (SIZE, SIZE, 3), "bilinear")
        prediction = np.asarray(logits).argmax(-1)
        for border, counts in scored_all.borders.items():
            expected = count(prediction, episode.query_label, 3, border)
            # A pixel whose logits are equal up to rounding may fall to either class.
            assert np.abs(counts[row] - expected).max() <= 1
    found = scored_all.borders["ignored"][:, 1, 0].tolist()
    assert len(set(found)) > 3  # the episodes differ, and much is found
    borders = [scored_all.borders[border].sum() for border in ("ignored", "background")]
    assert borders[0] < borders[1]  # labels have borders


class Measuring(PANet):
    """PANet that says how bright the query is."""

    def segment(self, *arguments, **options):
        output = super().segment(*arguments, **options)
        return output.replace(measured={"brightness": arguments[3].mean()})

    def measure(self, support_features, support_label, query_features, query_label):
        return {"share of class 1": (query_label == 1).mean()}


def test_what_a_method_measures_is_told_of_each_episode(source, variables, episodes):
    evaluator = make_evaluator(Measuring(backbone=Watched()), source, episodes)
    measured = evaluator.score(variables, evaluator.encode(variables)).measured
    squares = [read_square(source, int(query), SIZE) for query in episodes.query]
    bright = [normalise(image).mean() for image, _ in squares]
    share = [
        (label == classes[0]).mean()
        for (_, label), classes in zip(squares, episodes.classes, strict=True)
    ]
    assert measured == {
        "brightness": pytest.approx(np.array(bright), rel=1e-4),
        "share of class 1": pytest.approx(np.array(share)),
    }


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (8, 1), (3, 2)])
def test_score_does_not_depend_on_batch_or_devices(
    model, source, variables, episodes, counts, batch_size, devices
):
    other = make_evaluator(model, source, episodes, batch_size, devices)
    np.testing.assert_array_equal(ignored(other, variables), counts)


def test_score_of_an_episode_does_not_depend_on_the_list(
    model, source, variables, counts, episodes
):
    """Other images are read, too."""
    rows = [5, 2]
    other = make_evaluator(model, source, episodes.take(np.array(rows)), batch_size=1)
    np.testing.assert_array_equal(ignored(other, variables), counts[rows])


def test_only_images_in_use_are_read(model, source, monkeypatch):
    reads = calls_of(monkeypatch, source, "read")
    ids = EpisodeIds(*map(np.array, ([[1], [2]], [[[9, 3]], [[3, 4]]], [4, 9], [0, 0])))
    make_evaluator(model, source, ids)
    assert sorted(reads) == [(3,), (4,), (9,)]


def test_features_are_kept_in_the_type_that_was_asked_for(
    model, source, variables, episodes, counts
):
    other = make_evaluator(model, source, episodes, feature_dtype="float16")
    caches = other.encode(variables)
    assert [cache.features.dtype for cache in caches] == [jnp.float16]
    found = other.score(variables, caches).borders["ignored"]
    difference = episode_iou(found) - episode_iou(counts)
    assert np.abs(difference).max() < 1  # percent


# ----------------------------------------------------------------------------- the whole of it


def make_settings(**changes):
    config = default_config("panet")
    config.image_size, config.data.min_pixels, config.backbone = SIZE, 1, "small"
    config.eval.update(runs=2, episodes=10, seed=5, batch_size=10, gallery=1)
    config.eval.feature_dtype = "float32"
    config.update_from_flattened_dict(changes)
    return config


def evaluated(model, source, folder, variables=None, **changes):
    loaded = Loaded(variables, "of the test")
    return evaluate(make_settings(**changes), model, loaded, source, make_mesh(1), folder)


@pytest.fixture(scope="module")
def folder(model, source, variables, tmp_path_factory):
    """What an evaluation writes."""
    folder = tmp_path_factory.mktemp("run") / "evaluation"
    results = evaluated(model, source, folder, variables)
    assert strict_json(folder / "results.json") == results
    names = {path.name for path in folder.iterdir()}
    assert names == {"results.json", "episodes.csv", "report.html"}  # no partial file is left
    return folder


def strict_json(path):
    """JSON as its standard has it: Python's own dialect has NaN and Infinity too."""

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_results_hold_all_that_is_documented(folder, source):
    results = strict_json(folder / "results.json")
    assert results["method"] == "panet"
    assert results["backbone"] == "small"
    assert results["checkpoint"] == "of the test"
    assert (results["fold"], results["ways"], results["shots"]) == (0, 1, 1)
    assert results["episodes"] == 10
    assert [run["seed"] for run in results["runs"]] == [5, 6]
    assert set(results["per_class"]) == {source.class_names[c] for c in source.folds[0]}
    for name in ("mean_iou", "mean_iou_star", "binary_iou"):
        values = [run[name] for run in results["runs"]]
        assert results[name] == pytest.approx(np.mean(values))
        assert 0 < results[name] < 100
        assert results[f"{name}_std"] == pytest.approx(np.std(values))
    for name, value in results["per_class"].items():
        values = [run["per_class"][name] for run in results["runs"] if name in run["per_class"]]
        assert value == pytest.approx(np.mean(values))
    for name, value in results["borders"]["ignored"].items():
        assert value == results[name]
    assert results["borders"]["background"]["mean_iou"] < results["mean_iou"]
    assert results["measured"]["prototype distance"] > 0
    for run in results["runs"]:
        assert run["mean_iou"] == pytest.approx(np.mean(list(run["per_class"].values())))
    hashes = [results["episodes_hash"], *(run["episodes_hash"] for run in results["runs"])]
    assert len(set(hashes)) == 3
    assert results["protocol"]["hash"] in summary(results)
    assert 0 < results["photographs"] <= len(source)
    parts = [results[f"seconds_{part}"] for part in ("reading", "encoding", "scoring")]
    assert 0 < sum(parts) <= results["seconds"]


def test_listed_episodes_are_those_that_were_scored(folder, model, source, variables):
    """The list alone gives the same score again."""
    results = strict_json(folder / "results.json")
    listed = read_episodes(folder / "episodes.csv", source.ids, list(source.class_names))
    assert episodes_hash(listed, source.ids) == results["episodes_hash"]
    assert set(listed.classes.ravel().tolist()) <= set(source.folds[0])

    again = make_evaluator(model, source, listed, batch_size=10)
    counts = ignored(again, variables)
    with (folder / "episodes.csv").open() as file:
        lines = list(csv.DictReader(file))
    run_of = np.array([int(line["run"]) for line in lines])
    for number, run in enumerate(results["runs"]):
        part = listed.take(run_of == number)
        assert episodes_hash(part, source.ids) == run["episodes_hash"]
        figures = run_metrics(counts[run_of == number], part.classes, source.class_names)
        assert figures["mean_iou"] == pytest.approx(run["mean_iou"], abs=1e-9)
        assert figures["per_class"] == pytest.approx(run["per_class"], abs=1e-9)
    ious = [float(line["iou"]) for line in lines]
    np.testing.assert_allclose(ious, episode_iou(counts), atol=0.005001)


@pytest.fixture
def scored(monkeypatch):
    """A function that says which counts an evaluation shall find, without a model."""
    monkeypatch.setattr(Evaluator, "encode", lambda self, variables, store: None)
    monkeypatch.setattr(scoring, "portions", lambda *given: [np.arange(len(given[-1]))])

    def give(counts, with_borders=None):
        counts = np.asarray(counts)
        both = {"ignored": counts, "background": counts}
        if with_borders is not None:
            both["background"] = np.asarray(with_borders)
        monkeypatch.setattr(Evaluator, "score", lambda *_: Counts(both, None, {}))

    return give


def write_list(path, source, classes):
    """Episodes of one way and one shot, one a class, whatever their queries show."""
    table = source.table
    supports = {c: int(table.image[table.class_id == c][0]) for c in classes}
    queries = {c: (supports[c] + 1) % len(source) for c in classes}
    lines = [f"{c},{source.ids[supports[c]]},{source.ids[queries[c]]}\n" for c in classes]
    path.write_text("classes,supports,query\n" + "".join(lines))
    return str(path)


def test_a_listed_support_must_show_its_class(tmp_path, model, source):
    table = source.table
    without = set(range(len(source))) - set(table.image[table.class_id == 1].tolist())
    support, query = sorted(without)[0], int(table.image[table.class_id == 1][0])
    path = tmp_path / "list.csv"
    path.write_text(f"classes,supports,query\n1,{source.ids[support]},{source.ids[query]}\n")
    message = message_of(evaluated, model, source, tmp_path, **{"eval.episodes_file": str(path)})
    assert f"episode 1: the support {source.ids[support]} shows no" in message


@pytest.mark.parametrize(("second", "iou"), [([30, 0, 30], 50), ([0, 0, 0], None)])
def test_a_list_is_scored_in_one_run(tmp_path, model, source, scored, second, iou):
    """A class without pixels has no figure."""
    scored([[[500, 20, 30], [60, 30, 20]], [[500, 0, 0], second]])
    path = write_list(tmp_path / "list.csv", source, [1, 2])
    options = {"eval.episodes_file": path, "eval.gallery": 0}
    results = evaluated(model, source, tmp_path, **options)
    assert strict_json(tmp_path / "results.json") == results
    assert len(results["runs"]) == 1
    ious = [pytest.approx(100 * 60 / 110), iou]
    assert results["per_class"] == {source.class_names[c + 1]: x for c, x in enumerate(ious)}
    known = [100 * 60 / 110, *([] if iou is None else [iou])]
    assert results["mean_iou"] == pytest.approx(np.mean(known))
    assert results["mean_iou_std"] == 0
    read = read_episodes(tmp_path / "list.csv", source.ids, [1, 2])
    assert results["episodes_hash"] == episodes_hash(read, source.ids)


@pytest.mark.parametrize("border", ["ignored", "background"])
def test_both_figures_of_the_border_are_told_and_the_one_asked_for_first(
    tmp_path, model, source, scored, border
):
    scored([[[500, 20, 30], [60, 30, 20]]], [[[500, 20, 50], [60, 50, 20]]])
    path = write_list(tmp_path / "list.csv", source, [1])
    options = {"eval.episodes_file": path, "eval.gallery": 0, "eval.border": border}
    results = evaluated(model, source, tmp_path, **options)
    objects, ground = [100 * 60 / 110, 100 * 60 / 130], [100 * 500 / 550, 100 * 500 / 570]
    expected = {"ignored": objects[0], "background": objects[1]}
    assert {name: x["mean_iou"] for name, x in results["borders"].items()} == pytest.approx(
        expected
    )
    assert results["mean_iou"] == pytest.approx(expected[border])
    binary = [(a + b) / 2 for a, b in zip(objects, ground, strict=True)]
    for name in ("binary_iou", "binary_iou_shown", "binary_iou_merged"):  # one for one way
        found = [results["borders"][b][name] for b in ("ignored", "background")]
        assert found == pytest.approx(binary)
    iou = float((tmp_path / "episodes.csv").read_text().splitlines()[1].split(",")[-1])
    assert iou == pytest.approx(expected[border], abs=0.01)
    lines = comparisons(results)
    assert f"label 255 is background: mean-IoU {expected['background']:.1f}" in "\n".join(lines)
    assert len(lines) == 2


class Turning(PANet):
    """PANet of which a part can be left out, without which objects and background change places."""

    turned: bool = False

    def segment(self, *arguments, **options):
        output = super().segment(*arguments, **options)
        return output.replace(logits=-output.logits) if self.turned else output

    def ablations(self):
        return {"turned round": self.clone(turned=True)}


def test_figures_at_the_best_threshold_and_with_a_part_left_out(source, variables, tmp_path):
    """The threshold is found on classes that are not tested, by NumPy over all pixels."""
    options = {"eval.threshold": "base", "train.eval_episodes": 12, "eval.runs": 1}
    options |= {"eval.gallery": 0}
    config, model = make_settings(**options), Turning(backbone=Watched())
    results = evaluated(model, source, tmp_path, variables, **options)
    assert strict_json(tmp_path / "results.json") == results

    def pixels(which, count):
        """Class, probability of an object and truth of every pixel of each episode."""
        episodes = draw_episodes(config, source, which, config.eval.seed, count)
        evaluator = Evaluator(model, source, episodes, make_mesh(1), config)
        (cache,) = evaluator.encode(variables)
        for row in range(count):
            ids = episodes.take(row)
            _, probabilities = evaluator.scorer.predict(variables, cache, evaluator.rows.take(row))
            label = read_square(source, int(ids.query), SIZE).label
            yield int(ids.classes[0]), np.asarray(probabilities)[..., 1], label

    def mean_iou(pixels, threshold, turned=False):
        counts = {}
        for class_id, probability, label in pixels:
            found = (probability > threshold) & (label != 255)
            if turned:
                found = (probability < 1 - threshold) & (label != 255)
            there = label == class_id
            parts = [(found & there).sum(), (found | there).sum()]
            counts[class_id] = counts.get(class_id, 0) + np.array(parts)
        return float(np.mean([100 * hit / union for hit, union in counts.values()]))

    base, novel = list(pixels("base", 12)), list(pixels("novel", 10))
    assert {c for c, *_ in base} == set(source.folds[1])
    best = max(THRESHOLDS, key=lambda threshold: mean_iou(base, threshold))
    assert best != 0.5
    # A few pixels that stand at the threshold up to rounding.
    about = {"abs": 0.02}
    assert results["mean_iou"] == pytest.approx(mean_iou(novel, 0.5), **about)
    thresholded, (without,) = results["thresholded"], results["without"].values()
    assert (thresholded["threshold"], thresholded["chosen_on"]) == (best, "base")
    assert thresholded["mean_iou"] == pytest.approx(mean_iou(novel, best), **about)
    assert list(results["without"]) == ["turned round"]
    assert without["mean_iou"] == pytest.approx(mean_iou(novel, 0.5, turned=True), **about)
    own = max(THRESHOLDS, key=lambda threshold: mean_iou(base, threshold, turned=True))
    assert without["thresholded"]["threshold"] == own != best
    expected = mean_iou(novel, own, turned=True)
    assert without["thresholded"]["mean_iou"] == pytest.approx(expected, **about)
    figures = [thresholded, without, without["thresholded"]]
    assert [line.split("mean-IoU ")[1].split(",")[0] for line in comparisons(results)[2:]] == [
        f"{of['mean_iou']:.1f}" for of in figures
    ]
    report = (tmp_path / "report.html").read_text()
    assert all(f"<td>{of['mean_iou']:.1f}" in report for of in figures)


def test_means_over_runs_are_of_runs_not_of_episodes(tmp_path, model, source, scored):
    small, large = [[10, 0, 1], [1, 0, 0]], [[100, 0, 900], [0, 0, 900]]
    scored([small, small, large, large])
    results = evaluated(model, source, tmp_path, **{"eval.episodes": 2, "eval.gallery": 0})
    assert [run["mean_iou"] for run in results["runs"]] == [100, 0]
    assert (results["mean_iou"], results["mean_iou_std"]) == (50, 50)


def test_gallery_shows_the_best_the_median_and_the_worst(
    tmp_path, model, source, scored, monkeypatch
):
    found = [30, 90, 10, 50, 70]
    counts = [[[500, 0, 0], [part, 0, 100 - part]] for part in found]
    scored(counts)
    shown = {}
    monkeypatch.setattr(Evaluator, "example", lambda self, v, c, row, title, iou: (int(row), iou))
    monkeypatch.setattr(
        evaluation_run, "write_report", lambda path, r, gallery: shown.update(gallery)
    )
    evaluated(model, source, tmp_path, **{"eval.runs": 1, "eval.episodes": 5, "eval.gallery": 1})
    assert shown == {"Best": [(1, 90)], "Median": [(3, 50)], "Worst": [(2, 10)]}


def size_of_an_image(model, variables):
    """Bytes of its features and its label."""
    features = model.apply(variables, np.zeros((SIZE, SIZE, 3), np.float32), method="encode")
    return np.asarray(features).nbytes + SIZE**2 * 4


def test_parts_that_fit_into_memory_give_what_all_at_once_gives(
    folder, model, source, variables, tmp_path, monkeypatch
):
    made = calls_of(monkeypatch, Evaluator, "__init__")
    held = {"eval.cache": 3.5 * size_of_an_image(model, variables) / 2**30}
    results = evaluated(model, source, tmp_path, variables, **held)
    *scored, shown = (len(np.unique(episodes.images)) for _, _, _, episodes, *_ in made)
    assert len(scored) > 1
    assert max(scored) <= 3
    assert shown <= 6  # those of three episodes in the gallery
    whole = strict_json(folder / "results.json")
    for name in whole:
        if not name.startswith("seconds"):
            assert results[name] == whole[name], name
    assert (tmp_path / "episodes.csv").read_text() == (folder / "episodes.csv").read_text()


def test_each_image_is_encoded_once_however_many_parts_need_it(
    source, model, variables, tmp_path, caplog
):
    size = size_of_an_image(model, variables)
    for held in (100, 4.5):
        options = {"eval.gallery": 0, "eval.cache": held * size / 2**30}
        encoded.clear()
        with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
            results = evaluated(model, source, tmp_path / str(held), variables, **options)
        jax.effects_barrier()
        assert len(encoded) == results["photographs"] == len(set(encoded))
    messages = [record.getMessage() for record in caplog.records]
    compiled = [m for m in messages if "Finished XLA compilation of jit(score)" in m]
    assert len(compiled) <= 2  # with all images, and once for all parts


def test_images_and_episodes_may_be_computed_together(model, source, variables, episodes, counts):
    several = make_evaluator(model, source, episodes, devices=2, together=3)
    found = ignored(several, variables)
    np.testing.assert_allclose(found, counts, atol=2)  # pixels that are a tie


def test_an_episode_that_does_not_fit_alone_is_scored_all_the_same(source, model, variables):
    config = make_settings(**{"eval.cache": 1e-9})
    episodes = sample(source.table.items(range(1, 4)), 0, range(6), ways=1, shots=2)
    parts = portions(config, model, variables, source, episodes)
    assert [len(part) for part in parts] == [1] * 6
    assert sorted(np.concatenate(parts).tolist()) == list(range(6))
