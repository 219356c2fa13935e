"""Published tables: their runs are configurations of this package, and the papers have them."""

import pathlib
import re

import pytest
from ml_collections import ConfigDict

from fsseg_jax.config import config_names, default_config, differences, load_config, override
from fsseg_jax.evaluation.published import PUBLISHED, TABLES
from fsseg_jax.evaluation.published.__main__ import readme
from fsseg_jax.evaluation.report import SCORES
from fsseg_jax.models import METHODS, create_model

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PAPERS = pathlib.Path(__file__).parents[3] / "shared/papers"
EACH_TABLE = pytest.mark.parametrize("table", PUBLISHED.values(), ids=PUBLISHED)
ROWS = [(table, row) for table in PUBLISHED.values() for row in table.rows]


def each(rows):
    names = [f"{table.name} {row.label}" for table, row in rows]
    return pytest.mark.parametrize(("table", "row"), rows, ids=names)


EACH_ROW = each(ROWS)
EACH_COMMAND = each([(table, row) for table, row in ROWS if row.config])
# Means that do not follow from the folds beside them, in the papers themselves.
MISPRINTS = {("canet-1", "CANet", (1, 1), "binary_iou")}


def run_of(table, row):
    """All that a figure of the row depends on, but for its setting and metric."""
    run = (row.config or row.label, row.train, row.test, row.trained, row.train_shots)
    return (table.protocol, table.folds, *run)


# ------------------------------------------------------------------------------------- tables


def test_every_table_of_such_figures_is_there():
    tables = {"panet": 6, "canet": 6, "sst": 5, "ltafnet": 2, "mfnet": 11}
    assert list(PUBLISHED) == [
        f"{method}-{number}" for method, count in tables.items() for number in range(1, count + 1)
    ]
    assert {table.paper.method for table in PUBLISHED.values()} == set(tables) <= set(METHODS)


@EACH_TABLE
def test_rows_of_a_table_differ_in_label_and_in_run(table):
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    runs = [(run_of(table, row), setting) for row in table.rows for setting in row.settings]
    assert len(set(runs)) == len(runs)


@EACH_ROW
def test_a_row_has_a_command_or_says_why_not(table, row):
    assert bool(row.config) != row.note.startswith("no command:")
    assert row.config or not (row.train or row.test or row.train_shots)


def test_every_setting_of_the_papers_is_in_a_table():
    """But for those that are made for other purposes."""
    own = {"quickstart", "shapes", "panet_vgg16_fast"}
    own |= {f"panet_dinov{version}_{size}" for version in (2, 3) for size in "sbl"}
    assert {row.config.removesuffix(".py") for _, row in ROWS if row.config} == {
        *config_names()
    } - own


def test_readme_is_what_the_program_writes():
    assert (CONFIGS / "README.md").read_text(encoding="utf-8") == readme(), (
        "run python -m fsseg_jax.evaluation.published --write=configs/README.md"
    )


def test_readme_has_every_command_and_every_figure():
    text = readme()
    for _, row in ROWS:
        for field in (*row.train, *row.test):
            assert f"--config.{field}" in text
        for percent in row.published.values():
            assert f" {percent}" in text
    known = {
        name for method in METHODS for name in differences(default_config(method), ConfigDict())
    }
    assert {*re.findall(r"--config\.([\w.]+)=", text)} <= known


# ----------------------------------------------------------------------------------- overrides


@EACH_COMMAND
def test_overrides_apply_and_the_model_can_be_made(table, row):
    fields = (*table.protocol, *row.train, *row.test)
    for ways, shots in row.settings:
        cell = [f"ways={ways}", f"shots={shots}", f"data.fold={table.folds[-1]}"]
        arguments = [f"--config.{field}" for field in (*fields, *cell)]
        create_model(override(load_config(str(CONFIGS / row.config)), arguments))


@EACH_COMMAND
def test_overrides_of_a_row_change_something(table, row):
    config = load_config(str(CONFIGS / row.config))
    for field in row.train:
        assert differences(config, override(config, [f"--config.{field}"]))
    protocol = override(config, [f"--config.{field}" for field in table.protocol])
    scales = f"eval.scales={','.join(map(str, protocol.eval.scales))}"
    for field in row.test:  # of scales, a table says even those that the protocol has
        changed = override(protocol, [f"--config.{field}"])
        assert differences(protocol, changed) or field == scales


@EACH_COMMAND
def test_overrides_are_where_they_belong(table, row):
    protocol, train, test = (
        [field.split("=")[0] for field in fields]
        for fields in (table.protocol, row.train, row.test)
    )
    assert len({*protocol, *train, *test}) == len([*protocol, *train, *test])
    # The cells say these.
    assert not {"ways", "shots", "data.fold"} & {*protocol, *train, *test}
    assert {name.split(".")[0] for name in protocol} == {"eval"}
    # Which data and how long is a configuration file's.
    assert {name.split(".")[0] for name in train} <= {"model"}
    # Neither changes what a checkpoint was trained for.
    assert not any(name.startswith(("data.", "train.")) for name in test)
    assert row.trained or not (train or row.train_shots)


# ------------------------------------------------------------------------------------- figures


@EACH_TABLE
def test_figures_are_percents_of_known_cells(table):
    for row in table.rows:
        assert row.published
        for (setting, fold, metric), percent in row.published.items():
            assert fold == "mean" or fold in table.folds
            assert metric in SCORES
            assert 0 < percent < 100
            assert (setting, "mean", metric) in row.published


@EACH_TABLE
def test_a_figure_says_where_it_stands(table):
    places = [
        table.place(row, setting, fold, metric)
        for row in table.rows
        for setting, fold, metric in row.published
    ]
    labels = {row.printed or row.label for row in table.rows}
    twice = len(table.rows) > len(labels)  # rows that only a check mark tells apart
    assert twice or len(set(places)) == len(places)
    assert {place.row for place in places} == labels


def test_places_are_called_as_in_the_papers():
    table = TABLES["panet-1"]
    place = table.place(table.rows[1], (1, 5), 0, "mean_iou")
    assert str(place) == (
        "PANet (ICCV 2019), table 1, row PANet, column 1-way 5-shot mean-IoU split-1"
    )
    table = TABLES["mfnet-6"]
    place = table.place(table.rows[0], (2, 5), "mean", "mean_iou_star")
    assert (place.table, place.column) == ("table VI", "2-way 5-shot mIoU* mean")
    table = TABLES["canet-1"]
    assert table.place(table.rows[1], (1, 1), "mean", "mean_iou").table == "section 5.1.3"


@EACH_TABLE
def test_means_are_the_average_of_their_folds(table):
    for row in table.rows:
        for setting, metric in {(setting, metric) for setting, _, metric in row.published}:
            folds = [row.published.get((setting, fold, metric)) for fold in table.folds]
            if any(folds):
                mean = row.published[setting, "mean", metric]
                agree = mean == pytest.approx(sum(folds) / len(folds), abs=0.15)
                assert agree == ((table.name, row.label, setting, metric) not in MISPRINTS)


@EACH_TABLE
def test_counting_more_false_positives_raises_no_figure(table):
    for row in table.rows:
        for (setting, fold, metric), percent in row.published.items():
            if metric == "mean_iou_star":
                assert percent <= row.published.get((setting, fold, "mean_iou"), 100)


def test_binary_iou_of_several_ways_is_that_of_the_published_code():
    for _, row in ROWS:
        for (ways, _), _, metric in row.published:
            if metric.startswith("binary_iou"):
                assert metric == ("binary_iou" if ways == 1 else "binary_iou_shown")


def test_one_run_has_one_figure_in_all_tables():
    found = {}
    for table, row in [(table, row) for table, row in ROWS if row.config]:
        for cell, percent in row.published.items():
            found.setdefault((run_of(table, row), cell), set()).add(percent)
    assert [key for key, percents in found.items() if len(percents) > 1] == []


@pytest.mark.parametrize("name", config_names())
def test_figures_of_a_docstring_are_published_ones(name):
    docstring = (CONFIGS / f"{name}.py").read_text().split('"""')[1].split("    python -m")[0]
    like = name.removesuffix("_fast")
    own = {str(p) for _, row in ROWS if row.config == f"{like}.py" for p in row.published.values()}
    own |= {row.others[key].rstrip("M") for _, row in ROWS for key in row.others}
    assert {*re.findall(r"(?<![\d.])\d\d\.\d+", docstring)} <= own


# ----------------------------------------------------------------- the figures in the papers' text
#
# Most lines of a table are lines of the text: the row's label, then its figures in order. The
# others are listed here: after which words the numbers stand, and which of them are a row's.


def columns(count, *labels):
    """Which numbers are a row's where one column follows another; "" is another's row."""
    rows = len(labels)
    return {label: range(row, count * rows, rows) for row, label in enumerate(labels) if label}


def lines(count, *labels):
    """Which numbers are a row's where they stand in lines without a label."""
    return {label: range(row * count, (row + 1) * count) for row, label in enumerate(labels)}


_BLOCKS = ("block2", "block3", "block4", "block2, 3", "block2, 4", "block3, 4", "block2, 3, 4")
_SST = ("neither", "+SSM", "+SS Loss", "+SSM +SS Loss")
_SST_HEAD = "+SSM +SS Loss i=0 i=1 i=2 i=3 mean"
GARBLED = {
    "canet-1": [
        ("OSLSM[29] CANet", columns(10, "", "CANet")),
        # The means are first.
        ("OSLSM [29] co-FCN [24] PL [5] CANet", {"CANet": [8, 9, 10, 11, 3, 12, 13, 14, 15, 7]}),
        ("result with VGG as the backbone is", {"CANet on VGG-16": [0]}),
    ],
    "canet-2": [
        ("Pixel-wise labels Bounding box", columns(1, "Pixel-wise labels", "Bounding box"))
    ],
    # Check marks tell rows and columns apart.
    "canet-3": [("block2 block3 block4 meanIoU", columns(1, *_BLOCKS))],
    "canet-4": [
        (
            "CANet-Init CANet-Init + DenseCRF CANet",
            columns(1, "CANet-Init", "CANet-Init + DenseCRF", "CANet"),
        )
    ],
    "canet-5": [
        (
            "1-shot baseline Feature-Avg Mask-Avg Mask-OR Attention",
            columns(1, "1-shot baseline", "Feature-Avg", "Mask-Avg", "Mask-OR", "Attention"),
        )
    ],
    "canet-6": [
        ("CANet-Init CANet CANet", columns(1, "CANet-Init", "CANet", "CANet, MS")),
        (
            "Feature-Avg Mask-Avg Mask-OR Attention Attention",
            columns(1, "Feature-Avg", "Mask-Avg", "Mask-OR", "Attention", "Attention, MS"),
        ),
    ],
    "sst-1": [
        (_SST_HEAD, lines(5, *_SST)),
        (f"(a) Results for 1-shot segmentation. {_SST_HEAD}", lines(5, *_SST)),
    ],
    "mfnet-2": [
        (
            "SG-One [48] PANet [18] PLSEG [30] MetaSeg [27] MFNet 2-way 5-shot",
            columns(1, "", "PANet", "", "", "MFNet"),
        )
    ],
    "mfnet-3": [("MFNet MFNet+ SA in [21]", columns(2, *[""] * 12, "MFNet", "MFNet + SA"))],
    "mfnet-4": [
        ("Baseline", {"Baseline": [0, 1, 2, 3, 4]}),
        ("A+A C+C C+A MFNet (A+C)", columns(5, "A+A", "C+C", "C+A", "MFNet (A+C)")),
    ],
    "mfnet-5": [
        ("PFENet* [22] CyCTR* [21] MFNet 0.096s 0.118s 0.057s", columns(2, "", "", "MFNet"))
    ],
    "mfnet-6": [
        (
            "w/o AS w/ AS -v1 w/ AS -v2 MFNet (w/ AS ) fold-0",
            columns(5, "w/o A_S", "w/ A_S-v1", "w/ A_S-v2", "MFNet (w/ A_S)"),
        )
    ],
    "mfnet-7": [
        (
            "w/o AM w/ AM -v1 w/ AM -v2 MFNet (w/ AM ) fold-0",
            columns(5, "w/o A_M", "w/ A_M-v1", "w/ A_M-v2", "MFNet (w/ A_M)"),
        )
    ],
    "mfnet-9": [
        ("MFNet (VGG16) MFNet (ResNet50)", columns(2, "MFNet (VGG16)", "MFNet (ResNet50)"))
    ],
    "mfnet-11": [
        ("MFNet MFNet + SA in [21]", columns(2, "PANet", *[""] * 5, "MFNet", "MFNet + SA"))
    ],
}
# Their columns are scattered: each is a fold, under its name, and has mIoU* and mIoU of five rows.
SCATTERED = {"mfnet-1": 0, "mfnet-10": 2}  # with settings before them
NEAR = 4000  # characters between a figure and the caption of its table


def text_of(table):
    path = PAPERS / f"{table.paper.method}.txt"
    if not path.is_file():
        pytest.skip(f"the text of {table.paper.name}'s paper is not here")
    return " ".join(path.read_text(encoding="utf-8").split())


def caption(table, text):
    """Where the captions of the table may begin; a sentence may mention it too."""
    number = table.printed
    return [m.start() for m in re.finditer(rf"(?:Table|TABLE) {number}\b", text)]


def numbers_after(words, text, places, count):
    """The first numbers behind some words, where these are near one of the places."""
    for match in re.finditer(re.escape(words) + r"(?![\w+])", text):
        if min(abs(match.start() - place) for place in places) < NEAR:
            numbers = re.findall(r"\d+\.\d+", text[match.end() :][:800])[:count]
            if len(numbers) == count:
                yield numbers


def scattered(table, row, text):
    """A row's figures from the columns of the folds."""
    place = {"PANet": 0, "MFNet": 4}[row.label]
    found = {}
    for number, setting in enumerate(row.settings, SCATTERED[table.name]):
        for fold in (*table.folds, "mean"):
            head = "Mean" if fold == "mean" else f"fold-{fold}"
            columns = re.findall(rf"{head} ((?:\d+\.\d/\d+\.\d ){{5}})", text)
            star, plain = columns[number].split()[place].split("/")
            found[setting, fold, "mean_iou_star"] = star
            found[setting, fold, "mean_iou"] = plain
    return [found[key] for key in row.published]


@EACH_ROW
def test_the_paper_has_the_figures_of_a_row(table, row):
    text = text_of(table)
    places = caption(table, text)
    assert places
    expected = [str(percent) for percent in row.published.values()]
    if table.name in SCATTERED:
        assert scattered(table, row, text) == expected
        return
    if table.name not in GARBLED:
        found = numbers_after(row.printed or row.label, text, places, len(expected))
        assert expected in list(found)
        return
    for words, rows in GARBLED[table.name]:
        which = rows.get(row.label, [])
        part, expected = expected[: len(which)], expected[len(which) :]
        tokens = numbers_after(words, text, places, max(which, default=0) + 1)
        assert not part or part in [[numbers[i] for i in which] for numbers in tokens]
    assert not expected


@each([(table, row) for table, row in ROWS if row.others])
def test_the_paper_has_what_else_a_row_says(table, row):
    text = text_of(table)
    for value in row.others.values():
        assert re.search(rf"(?<![\d.]){re.escape(value)}(?![\d.]*\d)", text)
