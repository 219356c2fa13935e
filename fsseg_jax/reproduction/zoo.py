"""A folder of trained models: what each was trained on, its figures, and an overview of all.

The facts of a model are in `figures.json` beside its weights. Its card and the overview, the
`README.md` of the folder, are made from them.
"""

import functools
import json
import logging
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

from fsseg_jax.checksums import checksum_of, checksums
from fsseg_jax.errors import UserError, brief
from fsseg_jax.evaluation.published import Table
from fsseg_jax.evaluation.tables.cells import Cell
from fsseg_jax.evaluation.tables.report import deviations, percent, training_facts, training_words
from fsseg_jax.files import write_text
from fsseg_jax.prediction import sharing
from fsseg_jax.prediction.segmenter import Segmenter

FACTS, OVERVIEW = "figures.json", "README.md"
LICENCE = "apache-2.0"  # of this library and of the models
VERSION = 1  # of the format of the facts
CHECKSUM, WEIGHTS = "checksum", "weights_checksum"  # of the other facts, and of the model's weights
MADE = "<!-- Made by python -m fsseg_jax.reproduce --checkpoints, and again with each model. -->"

logger = logging.getLogger(__name__)


def add(
    models: pathlib.Path, name: str, model: Segmenter, cells: Sequence[Cell], table: Table
) -> None:
    """Writes a trained model with its facts and card into a folder of models, and the overview.

    Figures of the same weights in other tables stay.

    Args:
        models: the folder, in which the model gets the folder `name`.
        cells: those of the table that the model was tested for, with results.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = models / name
    facts = describe(cells, table)
    facts[WEIGHTS] = checksum_of(checksums(model.variables))
    try:
        earlier = read(folder)
    except UserError:  # there is none yet, or it is replaced
        earlier = {}
    if earlier.get(WEIGHTS) == facts[WEIGHTS]:
        facts["tables"] += [other for other in earlier["tables"] if other["table"] != table.name]
    about = card(facts)
    sharing.save(folder, model.config, model.variables, name, about, LICENCE, model.trained)
    facts[CHECKSUM] = checksum_of(facts)
    write_text(folder / FACTS, json.dumps(facts, indent=1))
    write_overview(models)


# -------------------------------------------------------------------------------------- facts


def describe(cells: Sequence[Cell], table: Table) -> dict[str, Any]:
    """The facts of a model: what it is, how it was trained, and its figures in a table.

    Args:
        cells: cells of one run, with results.
    """
    run, first = cells[0].run, cells[0].results
    assert run is not None
    assert first is not None
    config = run.config
    data, fold = sharing.held_out(config)
    return {
        "fsseg_jax": VERSION,
        "method": config.method,
        "backbone": config.backbone,
        "pretrained": pathlib.Path(config.init).name if "." in config.init else config.init,
        "image_size": config.image_size,
        "ways": config.ways,
        "shots": config.shots,
        "data": data,
        "held_out_fold": fold,
        "checkpoint": first["checkpoint"],
        "tables": [
            {
                "table": table.name,
                "title": table.title,
                "row": cells[0].place.row.label,
                "training": training_facts(cells[0]),
                "tests": [_test(cell, table) for cell in cells],
            }
        ],
    }


def _test(cell: Cell, table: Table) -> dict[str, Any]:
    results, (row, setting, fold) = cell.results or {}, cell.place
    return {
        "test": str(cell.place),
        "mean_iou": results["mean_iou"],
        "paper": row.published.get((setting, fold, "mean_iou")),
        "deviations": deviations(table, cell),
        "checkpoint": results["checkpoint"],
        "runs": len(results["runs"]),
        "episodes": results["episodes"],
        "episodes_hash": results["episodes_hash"],
        "protocol": results["protocol"]["hash"],
    }


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The facts of a model.

    Raises:
        UserError: it has none, or they are damaged or those of other weights.
    """
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"it has no {FACTS}: reproduce --checkpoints writes it.")
    if not (folder / sharing.WEIGHTS).is_file():
        raise UserError(f"it has no {sharing.WEIGHTS}: write the model again.")
    try:
        facts = json.loads(path.read_bytes())
        known = facts.pop(CHECKSUM)
        if facts["fsseg_jax"] != VERSION:
            raise ValueError(f"version {facts['fsseg_jax']} of the format is not known")
        if known != checksum_of(facts):
            raise ValueError("its checksum is another")
        saved = json.loads((folder / sharing.CONFIG).read_bytes())[sharing.CHECKSUMS]
        weights = {name: checksum for name, checksum in saved.items() if name != sharing.CONFIG}
        if facts[WEIGHTS] != checksum_of(weights):
            raise ValueError("it is of other weights")
        _ = _rows(folder.name, facts), card(facts)  # all that they are for is there
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{FACTS} is not usable ({brief(str(error))}): write the model again."
        ) from None
    return facts


# ------------------------------------------------------------------------- what is made of them


def card(facts: dict[str, Any]) -> str:
    """Sections of a model card: training, figures with their protocols, and terms."""
    training = "\n".join(
        f'For "{table["title"]}", row {table["row"]}: {training_words(table["training"])}.'
        for table in facts["tables"]
    )
    rows = [
        (
            table["table"],
            *(test["test"], *_compared(test), test["checkpoint"]),
            f"{test['runs']} x {test['episodes']}, {test['episodes_hash']}",
            test["protocol"],
        )
        for table in facts["tables"]
        for test in table["tests"]
    ]
    head = ("table", "test", "mean-IoU, %", "the paper's", "weights", "episodes", "protocol")
    of = f" and pretrained weights ({facts['pretrained']})" if facts["pretrained"] else ""
    return f"""## Training

{training}
These are the weights of {facts["checkpoint"]}.

## Figures

On classes that training did not see:

{_as_table(head, rows)}

## Terms

The library and these files are licensed under Apache-2.0. They are derived from images of
{facts["data"]}{of}, which have their own terms.
"""


def write_overview(models: pathlib.Path) -> None:
    """Writes `README.md` with all models of a folder, but for folders that have no usable facts,
    which it warns of, and files of that name that were written by others.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = models / OVERVIEW
    if path.is_file() and not path.read_bytes().startswith(MADE.encode()):
        return _warn(
            f"{path} is not replaced by an overview of the models: it was written by others"
        )
    known = {}
    for folder in sorted(models.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                known[folder.name] = read(folder)
            except UserError as error:
                _warn(f"{folder} is left out of {path}: {error}")
    write_text(path, overview(models, known))


def overview(models: pathlib.Path, known: dict[str, dict[str, Any]]) -> str:
    """The overview of models in a folder, given their facts by name, in Markdown."""
    head = ("model", "method", "images", "trained on", "table", "test", "mean-IoU, %")
    head += ("the paper's", "not as in the paper", "protocol")
    rows = [row for name, facts in known.items() for row in _rows(name, facts)]
    places = (json.dumps((models / name).as_posix(), ensure_ascii=False) for name in known)
    calls = "\n".join(f"fsseg_jax.load({place})" for place in places)
    return f"""{MADE}

# Models

Few-shot segmenters that `python -m fsseg_jax.reproduce` has trained and tested on classes that
training did not see. Each has a card with its settings, weights and test episodes. Figures are
comparable only under one protocol.

{_as_table(head, rows)}

```python
import fsseg_jax

{calls}
```
"""


def _rows(name: str, facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a model in the overview, one for each test."""
    fold, training = facts["held_out_fold"], facts["tables"][0]["training"]
    trained = f"{facts['data']}, {'nothing' if fold is None else f'fold {fold}'} held out, "
    trained += f"{facts['ways']}-way {facts['shots']}-shot: {training['episodes']:,} episodes"
    if training["part"] is not None:
        trained += f", {percent(training['part'])} of the published training"
    about = (
        f"[{name}]({urllib.parse.quote(name)}/{sharing.CARD})",
        f"{facts['method']} on {facts['backbone']}",
        f"{facts['image_size']} px",
        trained,
    )
    rows = []
    for table in facts["tables"]:
        for test in table["tests"]:
            unlike = ", ".join(test["deviations"])
            own = (table["table"], test["test"], *_compared(test), unlike, test["protocol"])
            rows.append((*(("",) * len(about) if rows else about), *own))
    return rows


def _compared(test: dict[str, Any]) -> tuple[str, str]:
    """Our figure and the paper's, if it has one."""
    return f"{test['mean_iou']:.1f}", "" if test["paper"] is None else str(test["paper"])


def _as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


@functools.cache  # the overview is written often, and each warning told once
def _warn(sentence: str) -> None:
    logger.warning("%s", sentence)
