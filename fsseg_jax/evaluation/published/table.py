"""What a published table is: its rows, how they are trained and tested, where figures stand."""

import dataclasses
from typing import Literal, NamedTuple

Setting = tuple[int, int]  # ways, shots
Fold = int | Literal["mean"]  # folds count from 0
# (setting, fold, metric) -> percent, in the order of the paper's columns.
Figures = dict[tuple[Setting, Fold, str], float]

ONE_SHOT, FIVE_SHOT = (1, 1), (1, 5)  # of one way
TWO_WAY, TWO_WAY_FIVE_SHOT, FIVE_WAY = (2, 1), (2, 5), (5, 1)
# Names as in results.json. Of one way, all kinds of binary-IoU are the same; of several, what
# PANet's published code prints leaves out classes that a query does not show.
BINARY, BINARY_SHOWN, STAR = "binary_iou", "binary_iou_shown", "mean_iou_star"


class Place(NamedTuple):
    """Where a figure stands."""

    paper: str
    table: str
    row: str
    column: str

    def __str__(self) -> str:
        """Such as "PANet (ICCV 2019), table 1, row PANet, column 1-shot split-1"."""
        return f"{self.paper}, {self.table}, row {self.row}, column {self.column}"


@dataclasses.dataclass(frozen=True)
class Paper:
    """One of the five papers, and how it calls things."""

    # The method's name in this package, which begins the names of its tables; empty for ours.
    method: str
    name: str
    citation: str
    metrics: dict[str, str]  # metric -> its name in columns
    fold: str = "split-{}"  # the name of a fold in columns
    first_fold: int = 0

    @property
    def title(self) -> str:
        """Name and venue."""
        return f"{self.name} ({self.citation.split(', ')[-1]})"


@dataclasses.dataclass(frozen=True, eq=False)  # a row is itself alone, and may be a key
class Row:
    """One line of a table: a model, how it is trained and tested, and what the paper reports.

    Ways and shots are not among the overrides: they are those of the columns.
    """

    label: str  # the paper's own, or what its check marks mean
    published: Figures  # a figure that the paper lacks is absent
    config: str = ""  # a file in configs/; empty where `note` says why there is none
    train: tuple[str, ...] = ()  # overrides of the training, "model.alignment_weight=0.0"
    test: tuple[str, ...] = ()  # overrides of the evaluation alone, "model.refinements=0"
    trained: bool = True  # False: the freshly initialised model
    train_shots: int | None = None  # None: as many as it is tested with
    printed: str = ""  # the paper's label, where it is another
    section: str = ""  # where the figure stands in the text and not in the table
    # What else the paper reports of the row, as it prints it: {"#Params": "14.7M"}.
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""  # what a reader must know; why it has no command
    epochs: int = 0  # of the paper, where those of the configuration are fewer
    # What is measured beside what the paper reports: (setting, metric).
    measured: tuple[tuple[Setting, str], ...] = ()
    # Rows of other tables that the figures are quoted from, and these tables.
    quoted: tuple[tuple["Table", "Row"], ...] = ()

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Ways and shots that the row has figures of."""
        return tuple(dict.fromkeys([*(s for s, _, _ in self.published), *dict(self.measured)]))

    def metrics(self, setting: Setting) -> tuple[str, ...]:
        """Names of what the row has of a setting."""
        published = [metric for own, _, metric in self.published if own == setting]
        measured = [metric for own, metric in self.measured if own == setting]
        return tuple(dict.fromkeys([*published, *measured]))


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper, or one of ours."""

    paper: Paper
    number: int | str  # or the name of a table of ours
    about: str  # what follows its number in a title
    protocol: tuple[str, ...]  # overrides of all evaluations
    rows: tuple[Row, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3)  # those that "mean" is taken over
    printed: str = ""  # the paper's number, where it is a roman one

    @property
    def name(self) -> str:
        """Method and number, such as "panet-1"."""
        return f"{self.paper.method}-{self.number}" if self.paper.method else str(self.number)

    @property
    def title(self) -> str:
        """Paper, number and subject."""
        if not self.paper.method:
            return self.about
        return f"{self.paper.title}, table {self.printed or self.number}: {self.about}"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Ways and shots of the columns."""
        return tuple(dict.fromkeys(setting for row in self.rows for setting in row.settings))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names as in results.json: "mean_iou", "mean_iou_star" (mIoU*), "binary_iou", ..."""
        return tuple(
            dict.fromkeys(
                metric for row in self.rows for s in row.settings for metric in row.metrics(s)
            )
        )

    def place(self, row: Row, setting: Setting, fold: Fold, metric: str) -> Place:
        """Where a published figure of one of its rows stands."""
        for table, quoted in row.quoted:
            if (setting, fold, metric) in quoted.published:
                return table.place(quoted, setting, fold, metric)
        column = [f"{setting[0]}-way {setting[1]}-shot", self.paper.metrics[metric]]
        if fold != "mean":
            column.append(self.paper.fold.format(fold + self.paper.first_fold))
        elif any(f != "mean" for s, f, m in row.published if (s, m) == (setting, metric)):
            column.append("mean")
        where = row.section or f"table {self.printed or self.number}"
        return Place(self.paper.title, where, row.printed or row.label, " ".join(column))


def cells(setting: Setting, *folds: float, mean: float, metric: str = "mean_iou") -> Figures:
    """Published percents of one setting: folds 0, 1, ... where there are any, and their mean."""
    percents = {**dict(enumerate(folds)), "mean": mean}
    return {(setting, fold, metric): percent for fold, percent in percents.items()}


def means(one_shot: float, five_shot: float, *, ways: int = 1, metric: str = "mean_iou") -> Figures:
    """Published means over the folds, with one shot and with five."""
    return {((ways, 1), "mean", metric): one_shot, ((ways, 5), "mean", metric): five_shot}
