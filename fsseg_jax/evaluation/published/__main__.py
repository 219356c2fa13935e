"""Writes configs/README.md: python -m fsseg_jax.evaluation.published

Prints the file, which is generated from the text below, the configurations and the published
tables; --write=FILE writes it there instead.
"""

import ast
import pathlib
import string
from collections.abc import Iterable, Sequence

from fsseg_jax import command_line
from fsseg_jax.config import config_file, config_names, load_config
from fsseg_jax.evaluation.published import PUBLISHED, Row, Setting, Table

# Parameters in millions: learnable with one shot and with several (where a method attends to
# shots), frozen, and in the paper.
PARAMETERS = {
    "panet_vgg16": (14.71, 14.71, 0.0, "14.7"),
    "panet_res50": (23.51, 23.51, 0.0, "23.5 (MFNet's)"),
    "canet_vgg16": (9.02, 10.20, 7.64, ""),
    "canet_res50": (10.49, 11.68, 8.54, ""),
    "sst_vgg16": (14.88, 14.88, 0.0, ""),
    "sst_res50": (17.26, 17.26, 0.0, ""),
    "ltafnet_res50": (15.34, 15.34, 8.54, ""),
    "mfnet_vgg16": (11.48, 11.67, 7.64, ""),
    "mfnet_res50": (11.80, 12.00, 8.54, "9.4"),
}

TEXT = string.Template("""# Configurations

<!-- Made by python -m fsseg_jax.evaluation.published --write=configs/README.md: change that. -->

There is one file for each published setting. Its docstring names the paper and the setting, the
figure that it should reach, and the commands. Any field can be changed on the command line
(`--config.shots=5`); [`docs/config.md`](../docs/config.md) lists all of them.

$files
There are two kinds of weights for ResNet-50: torchvision's and timm's
(`--config.backbone=resnet50`), and the original ones, whose layers have their stride on the first 1
x 1 convolution (`resnet50_caffe`).

## Parameters

In millions, as training logs them at its start (PANet on ResNet-50 with layer4; MFNet with two
ways).

$parameters
MFNet's paper does not say which of its scales share weights. Ours has two embeddings (supports and
queries, 0.39 each), four scales with weights of their own (2.43 each), the decoder (1.31 with two
ways), and the support attention (0.20) where there are several shots. Four scales that share all
weights would give 4.5; three with weights of their own give 9.38, which is near the paper's figure,
but the paper has four.

## Tables

All tables of the five papers, with the rows of the five methods. Each line stands for two commands,
the second of which gives the figure, on fold 0 and with the data in `DATA`:

```sh
python -m fsseg_jax.train --config=configs/FILE --workdir=runs/NAME --config.data.root=DATA \\
    --config.data.fold=0 TRAINING
python -m fsseg_jax.evaluate --workdir=runs/NAME PROTOCOL TEST
```

Rows that are not trained need only the second one, with `--config=configs/FILE`,
`--config.data.root` and a new folder. `python -m fsseg_jax.reproduce --table=panet-1
--workdir=runs` does both for a whole table ([how](../docs/evaluation.md#published-tables)).
Published figures are the papers', in percent: folds in their order, then their mean.

$tables
## Beyond the papers

| | training |
| --- | --- |
| SST with an inner loop of first order | `--config.model.second_order=False` |
| SST on a frozen backbone | `--config.model.freeze_backbone=True` |
| MFNet at the rate that PFENet's code has | `--config.train.learning_rate=2.5e-2` |
| any method, on images without held-out classes | `--config.data.held_out_photographs=drop` |
""")


def readme() -> str:
    """The contents of configs/README.md."""
    files = _table(["file", "what", "trained"], map(_file_row, config_names()))
    parameters = _table(
        ["", "learnable", "with several shots", "frozen", "paper"],
        (
            [f"`{name}`", *map(_millions, (learnable, more, frozen)), paper]
            for name, (learnable, more, frozen, paper) in PARAMETERS.items()
        ),
    )
    sections = []
    for table in PUBLISHED.values():
        if table.number == 1:
            sections.append(f"### {table.paper.name} ({table.paper.citation})\n")
        sections.append(_section(table))
    return TEXT.substitute(files=files, parameters=parameters, tables="\n".join(sections))


def _file_row(name: str) -> list[str]:
    path = pathlib.Path(config_file(name) or name)
    what = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    train = (config := load_config(str(path))).train
    long = f"{train.epochs} epochs" if train.epochs else f"{train.steps:,} steps"
    batch = f"{train.batch_size} episode{'s' * (train.batch_size > 1)} a step"
    file = f"[`{path.name}`]({path.name})"
    return [file, " ".join(what.split()).rstrip(".:"), f"{config.image_size} px, {long}, {batch}"]


def _section(table: Table) -> str:
    lines, notes = [], []
    for row in table.rows:
        for setting in row.settings:
            label = row.label if setting == row.settings[0] else ""
            lines.append([label, *_commands(row, setting), _figures(table, row, setting)])
        others = [f"{name}: {value} in the paper." for name, value in row.others.items()]
        if remarks := " ".join([*others, row.note]).strip():
            notes.append(f"- {row.label}: {remarks}\n")
    head = f"**`{table.name}`**, {table.title}; `PROTOCOL` is {_code(table.protocol)}\n\n"
    body = _table(["", "file", "training", "test", "published"], lines)
    return "\n".join([head + body, *(["".join(notes)] if notes else [])])


def _commands(row: Row, setting: Setting) -> list[str]:
    """The configuration file, and the overrides for training and testing."""
    if not row.config:
        return ["none", "", ""]
    config = load_config(config_file(pathlib.Path(row.config).stem) or row.config)
    trained = config.ways, config.shots
    train = "none"
    if row.trained:
        wanted = setting[0], row.train_shots or setting[1]
        train = _code([*row.train, *_changed(trained, wanted)])
        trained = wanted
    return [f"`{row.config}`", train, _code([*row.test, *_changed(trained, setting)])]


def _changed(old: Setting, new: Setting) -> list[str]:
    pairs = zip(("ways", "shots"), old, new, strict=True)
    return [f"{name}={after}" for name, before, after in pairs if before != after]


def _figures(table: Table, row: Row, setting: Setting) -> str:
    """The published figures of a row in one setting."""
    figures: dict[str, str] = {}
    for (own, fold, metric), percent in row.published.items():
        if own == setting:
            sign = " = " if fold == "mean" and metric in figures else " "
            figures[metric] = f"{figures.get(metric, '')}{sign}{percent}"
    return "; ".join(f"{table.paper.metrics[metric]}{x}" for metric, x in figures.items())


def _code(fields: Iterable[str]) -> str:
    words = " ".join(f"--config.{field}" for field in fields)
    return f"`{words}`" if words else ""


def _millions(count: float) -> str:
    return f"{count:.2f}" if count else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("*", r"\*") for line in lines)


def main() -> None:
    """Runs the program."""
    arguments, _ = command_line.parse(
        __doc__,
        workdir=False,
        config=False,
        write={
            **command_line.FOLDER,
            "metavar": "FILE",
            "help": "file to write instead of printing",
        },
    )
    if arguments.write:
        arguments.write.write_text(readme(), encoding="utf-8")
    else:
        print(readme(), end="")


if __name__ == "__main__":
    command_line.run(main)
