"""The page is complete, stands alone, and shows labels truthfully."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fsseg_jax.evaluation.report import WAY_COLOURS, Example, classes_of, overlay, write_report

HEIGHT, WIDTH = 90, 300
PER_CLASS = {"cat": 61.24, "dog": None, "<b>&'\"horse": 48.76}


class Page(HTMLParser):
    """The tags, attributes and text of a page, its entities resolved."""

    def __init__(self, source):
        super().__init__()
        self.source, self.tags, self.attributes, self.texts = source, set(), [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data.strip())

    def pictures(self):
        files = [value.split(",")[1] for name, value in self.attributes if name == "src"]
        return [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]


def example(ways=2, shots=1):
    rng = np.random.default_rng(0)
    size = (HEIGHT, WIDTH)
    return Example(
        title="best <1>",
        iou=87.65,
        classes=tuple(list(PER_CLASS)[-ways:]),
        support_ids=tuple(tuple(f"s&{way}_{shot}" for shot in range(shots)) for way in range(ways)),
        query_id="<query>",
        support_image=rng.integers(0, 256, (ways, shots, *size, 3), np.uint8),
        support_label=rng.choice(np.array([0, 1, 255], np.uint8), (ways, shots, *size)),
        query_image=np.full((*size, 3), 200, np.uint8),
        query_label=np.zeros(size, np.uint8),
        prediction=np.ones(size, np.uint8),
    )


def figures(mean_iou, mean_iou_star, binary_iou):
    """Means as an evaluation tells them; the second and third binary-IoU are made of the first."""
    names = ("mean_iou", "mean_iou_star", "binary_iou", "binary_iou_shown", "binary_iou_merged")
    values = (mean_iou, mean_iou_star, binary_iou, binary_iou + 1.1, binary_iou + 3.3)
    return dict(zip(names, values, strict=True))


def test_what_was_tested_is_told_where_nothing_is_held_out():
    assert classes_of(results()) == "fold 3"
    assert classes_of(results(fold=None)) == "listed classes"
    told = classes_of(results(fold=0, protocol={"folds": "nothing is held out"}))
    assert told == "nothing is held out"


def results(**changes):
    runs = [
        {"seed": 7, **figures(54.5, 52.9, 71.5), "episodes_hash": "aaaa0007"},
        {"seed": 8, **figures(55.5, 53.5, 72.5), "episodes_hash": "aaaa0008"},
    ]
    runs = [{**run, "per_class": PER_CLASS} for run in runs]
    means = figures(55.0, 53.2, 72.0)
    return {
        "method": "panet",
        "backbone": "vgg16",
        **means,
        **{f"{name}_std": 0.5 for name in means},
        "borders": {"ignored": means, "background": figures(49.9, 48.8, 66.6)},
        "per_class": PER_CLASS,
        "runs": runs,
        "model": {"alignment_weight": 0.25, "similarity_scale": 20.0, "<option>": 1},
        "measured": {"prototype shift": 0.0123, "prototype distance": None},
        "episodes": 1000,
        "ways": 2,
        "shots": 1,
        "fold": 3,
        "seconds": 125.2,
        "checkpoint": "freshly initialised <now>",
        "protocol": {"hash": "beef0123", "data.root": "/data/<voc>"},
        "episodes_hash": "cafe4567",
        **changes,
    }


def written(folder, given, gallery):
    """The only page in a folder after the report was written."""
    write_report(folder / "report.html", given, gallery)
    assert [file.name for file in folder.iterdir()] == ["report.html"]  # no partial file left
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def page(tmp_path):
    return written(tmp_path, results(), {"Best": [example()], "Worst": []})


def test_one_run_has_no_deviation_and_a_list_may_have_no_fold(tmp_path):
    assert "±" in written(tmp_path, results(), {}).source
    one = results(fold=None)
    one["runs"] = one["runs"][:1]
    source = written(tmp_path, one, {}).source
    assert "±" not in source
    assert "listed classes" in source


def test_one_way_has_one_definition_of_each_figure(tmp_path):
    several = {"mIoU*", "binary-IoU of shown classes", "binary-IoU of merged classes"}
    one, two = ({*written(tmp_path, given, {}).texts} for given in (results(ways=1), results()))
    assert not several & one
    assert "binary-IoU" in one
    assert several | {"binary-IoU"} <= two


def rows_beside(folder, given):
    """The rows of the card with figures beside the main ones."""
    texts = [text for text in written(folder, given, {}).texts if text]
    if "Under other rules" not in texts:
        return None
    after = texts[texts.index("Under other rules") + 1 :]
    card = after[: after.index("Protocol")]
    columns = 5 if given["ways"] > 1 else 2
    names, cells = card[:columns], card[columns:]
    rows = [cells[at : at + columns + 1] for at in range(0, len(cells), columns + 1)]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def test_figures_beside_the_main_ones_are_in_a_card(tmp_path):
    """Both borders; at a threshold and with parts left out where there are such figures."""
    found = rows_beside(tmp_path, results())
    assert list(found) == ["label 255 is ignored", "label 255 is background"]
    assert found["label 255 is background"] == {
        "mean-IoU": "49.9",
        "mIoU*": "48.8",
        "binary-IoU": "66.6",
        "binary-IoU of shown classes": "67.7",
        "binary-IoU of merged classes": "69.9",
    }
    at = {"threshold": 0.35, "chosen_on": "base"}
    more = {
        "thresholded": {**at, **figures(57.1, 56.1, 74.1)},
        "without": {
            "alpha <0>": {
                **figures(51.5, 50.5, 70.5),
                "thresholded": {**at, "threshold": 0.6, **figures(52.5, 51.5, 71.6)},
            },
            "no tuning": figures(44.4, 43.4, 63.4),
        },
    }
    found = rows_beside(tmp_path, results(ways=1, **more))
    assert {words: figure["mean-IoU"] for words, figure in found.items()} == {
        "label 255 is ignored": "55.0",
        "label 255 is background": "49.9",
        "at threshold 0.35, best on base classes": "57.1",
        "alpha <0>": "51.5",
        "alpha <0>, at threshold 0.60": "52.5",
        "no tuning": "44.4",
    }
    assert all(list(figure) == ["mean-IoU", "binary-IoU"] for figure in found.values())


def test_results_of_version_0_1_have_no_card_of_other_figures(tmp_path):
    assert rows_beside(tmp_path, results(borders={})) is None


def test_scores_hashes_runs_and_settings_are_shown(page):
    words = ("alignment weight", "Prototype shift", "/data/<voc>")
    numbers = "55.0 72.0 53.2 52.9 0.25 0.0123 beef0123 cafe4567 aaaa0007 54.5 72.5"
    words += ("2 x 1000", "freshly initialised <now>", "2-way 1-shot · fold 3")
    assert {*words, *numbers.split()} <= {*page.texts}
    assert page.texts[page.texts.index("Prototype distance") + 1] == "—"  # not measured
    assert "similarity scale" not in page.texts  # it is the default
    assert "Worst" not in page.texts  # a heading without examples


def test_classes_are_sorted_by_iou_and_none_is_a_dash(page):
    start = page.texts.index("IoU per class")
    bars = [text for text in page.texts[start:] if text][1:7]
    assert bars == ["cat", "61.2", "<b>&'\"horse", "48.8", "dog", "—"]


def test_text_is_escaped(page):
    for text in ("<b>&", "best <1>", "<query>", "<now>", "<voc>", "<option>"):
        assert text not in page.source
    for text in ("best <1>", "<query>", "s&0_0"):
        assert text in page.texts


def test_page_refers_to_nothing_outside_itself(page):
    assert not page.tags & {"script", "iframe", "object"}
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not [text for text in ("url(", "@import", "://") if text in page.source]


def test_gallery_embeds_small_pictures(page):
    pictures = page.pictures()
    assert len(pictures) == 2 + 3  # two supports; query, truth and prediction
    assert {picture.size for picture in pictures} == {(200, 60)}
    _, _, query, truth, prediction = (np.asarray(picture).mean((0, 1)) for picture in pictures)
    np.testing.assert_allclose(query, 200, atol=2)
    np.testing.assert_allclose(truth, 200, atol=2)  # nothing to find
    np.testing.assert_allclose(prediction, 200 * 0.6 + np.array(WAY_COLOURS[0]) * 0.4, atol=2)


def test_every_support_is_named(tmp_path):
    shown = example(ways=3, shots=5)
    page = written(tmp_path, results(), {"Median": [shown, shown]})
    assert all(page.texts.count(name) == 2 for names in shown.support_ids for name in names)


def test_overlay_tints_ways_and_leaves_the_background():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (120, 160, 3), np.uint8)
    before = image.copy()
    label = np.zeros((120, 160), np.uint8)
    label[20:60, 20:60], label[20:60, 60:100], label[80:110, 20:60] = 1, 2, 255
    shown = overlay(image, label)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(shown[label == 0], image[label == 0])
    for way, colour in enumerate(WAY_COLOURS[:2]):
        inside = np.s_[30:50, 30 + 40 * way : 50 + 40 * way]
        tinted = image[inside] * 0.6 + np.array(colour) * 0.4
        np.testing.assert_allclose(shown[inside], tinted, atol=1)
        np.testing.assert_array_equal(shown[20, 20 + 40 * way : 60 + 40 * way], [colour] * 40)
    hatch = overlay(np.full_like(image, 128), label)[label == 255]
    assert (hatch == hatch[:, :1]).all()  # grey
    assert len(np.unique(hatch)) == 2  # in two shades


def test_overlay_darkens_background_where_some_pixels_are_unlabelled():
    """What nobody has marked stays: the rest is what somebody said."""
    rng = np.random.default_rng(2)
    image = rng.integers(40, 256, (60, 90, 3), np.uint8)
    label = np.zeros((60, 90), np.uint8)
    label[5:25, 5:25], label[30:40, 5:25] = 1, 255
    label[:, 30:60] = label[10:20, 60:70] = 254
    shown = overlay(image, label).astype(int)
    unlabelled, background = label == 254, label == 0
    np.testing.assert_array_equal(shown[unlabelled], image[unlabelled])
    np.testing.assert_allclose(shown[background], 0.4 * image[background], atol=1)
    tinted = image[10:20, 10:20] * 0.6 + np.array(WAY_COLOURS[0]) * 0.4
    np.testing.assert_allclose(shown[10:20, 10:20], tinted, atol=1)


def test_overlay_has_a_colour_for_any_number_of_ways():
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    label[label == 254] = 253  # not labelled: of no way
    assert overlay(np.zeros((16, 16, 3), np.uint8), label).any(-1).sum() == 255
