"""Published tables: their rows, how these are trained and tested, and places of figures."""

import dataclasses
from typing import Any, Literal, NamedTuple

Setting = tuple[int, int]  # ways, shots
Fold = int | Literal["mean"]  # folds count from 0
# (setting, fold, metric) -> percent, in the order of the paper's columns.
Figures = dict[tuple[Setting, Fold, str], float]

ONE_SHOT, FIVE_SHOT = (1, 1), (1, 5)  # of one way
TWO_WAY, TWO_WAY_FIVE_SHOT, FIVE_WAY = (2, 1), (2, 5), (5, 1)
# Names as in results.json. With one way, all definitions of binary-IoU agree; with several, PANet's
# published code leaves out classes that a query does not show.
BINARY, BINARY_SHOWN, STAR = "binary_iou", "binary_iou_shown", "mean_iou_star"


class Place(NamedTuple):
    """The place of a figure in a paper."""

    paper: str
    table: str
    row: str
    column: str

    def __str__(self) -> str:
        """Such as "PANet (ICCV 2019), table 1, row PANet, column 1-shot split-1"."""
        return f"{self.paper}, {self.table}, row {self.row}, column {self.column}"


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper, and its names of metrics and folds."""

    # Name of the method in this package and prefix of the names of its tables; empty for ours.
    method: str
    name: str
    citation: str
    metrics: dict[str, str]  # names in the paper's columns by metric
    fold: str = "split-{}"  # name of a fold in columns
    first_fold: int = 0
    numerals: tuple[str, ...] = ()  # of its tables, if they are Roman
    protocol: tuple[str, ...] = ()  # overrides for all evaluations of its tables

    @property
    def title(self) -> str:
        """Name and venue of the paper."""
        return f"{self.name} ({self.citation.split(', ')[-1]})"

    def table(self, number: int, about: str, *rows: "Row", **options: Any) -> "Table":
        """A table of the paper, under its protocol."""
        printed = self.numerals[number - 1] if self.numerals else str(number)
        options = {"protocol": self.protocol, "printed": printed} | options
        return Table(self, number, about, rows=rows, **options)


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, and hashable
class Row:
    """A row of a table: a model, how it is trained and tested, and the paper's figures.

    The overrides do not contain ways and shots, which are those of the columns.
    """

    label: str  # the paper's label, or the meaning of its check marks
    published: Figures  # without the figures that the paper lacks
    config: str = ""  # file in configs/; empty if there is none, for the reason in `note`
    train: tuple[str, ...] = ()  # overrides for training, such as "model.alignment_weight=0.0"
    test: tuple[str, ...] = ()  # overrides for testing alone, such as "model.refinements=0"
    trained: bool = True  # False: the freshly initialised model
    train_shots: int | None = None  # None: the number of shots of the test
    printed: str = ""  # the paper's label, if it differs from `label`
    section: str = ""  # section of the paper, if the figure is not in the table
    # Other values that the paper prints for the row, such as {"#Params": "14.7M"}.
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""  # a remark for readers, such as why the row has no command
    epochs: int = 0  # epochs in the paper, if the configuration has fewer
    # Figures that are measured although the paper does not report them: (setting, metric).
    measured: tuple[tuple[Setting, str], ...] = ()
    # The tables and rows that figures are quoted from.
    quoted: tuple[tuple["Table", "Row"], ...] = ()

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Ways and shots that the row has figures for."""
        return tuple(dict.fromkeys([*(s for s, _, _ in self.published), *dict(self.measured)]))

    def metrics(self, setting: Setting) -> tuple[str, ...]:
        """Metrics that the row has in a setting."""
        published = [metric for own, _, metric in self.published if own == setting]
        measured = [metric for own, metric in self.measured if own == setting]
        return tuple(dict.fromkeys([*published, *measured]))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper, or one of ours."""

    paper: Paper
    number: int | str  # number in the paper, or name of a table of ours
    about: str  # the subject, which follows the number in titles
    protocol: tuple[str, ...]  # overrides for all evaluations
    rows: tuple[Row, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3)  # the folds that "mean" averages
    printed: str = ""  # the number as the paper prints it

    @property
    def name(self) -> str:
        """Method and number, such as "panet-1"."""
        return f"{self.paper.method}-{self.number}" if self.paper.method else str(self.number)

    @property
    def title(self) -> str:
        """Paper, number and subject."""
        if not self.paper.method:
            return self.about
        return f"{self.paper.title}, table {self.printed}: {self.about}"

    def place(self, row: Row, setting: Setting, fold: Fold, metric: str) -> Place:
        """The place of a published figure of a row."""
        for table, quoted in row.quoted:
            if (setting, fold, metric) in quoted.published:
                return table.place(quoted, setting, fold, metric)
        column = [f"{setting[0]}-way {setting[1]}-shot", self.paper.metrics[metric]]
        if fold != "mean":
            column.append(self.paper.fold.format(fold + self.paper.first_fold))
        elif any(f != "mean" for s, f, m in row.published if (s, m) == (setting, metric)):
            column.append("mean")
        where = row.section or f"table {self.printed}"
        return Place(self.paper.title, where, row.printed or row.label, " ".join(column))


def cells(setting: Setting, *folds: float, mean: float, metric: str = "mean_iou") -> Figures:
    """Published figures of one setting: of folds 0, 1, ..., if any, and their mean."""
    percents = {**dict(enumerate(folds)), "mean": mean}
    return {(setting, fold, metric): percent for fold, percent in percents.items()}


def means(one_shot: float, five_shot: float, *, ways: int = 1, metric: str = "mean_iou") -> Figures:
    """Published means over the folds, with one and five shots."""
    return {((ways, 1), "mean", metric): one_shot, ((ways, 5), "mean", metric): five_shot}
