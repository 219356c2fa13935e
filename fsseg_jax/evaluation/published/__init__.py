"""The tables of the five papers: how each row is trained and tested, and its published figures.

`PUBLISHED` has every table that reports figures of the five methods, under its method and number,
such as `panet-1`. Rows of other methods are left out, and so are figures that one of the papers
quotes from another: they are in their original table. `TABLES` also has our own tables, `methods`
and `shapes`.

    python -m fsseg_jax.evaluation.published --write=configs/README.md
"""

from fsseg_jax.evaluation.published import canet, ltafnet, mfnet, ours, panet, sst
from fsseg_jax.evaluation.published.table import Figures, Fold, Paper, Place, Row, Setting, Table

__all__ = [
    "PUBLISHED",
    "TABLES",
    "Figures",
    "Fold",
    "Paper",
    "Place",
    "Row",
    "Setting",
    "Table",
    "overview",
]

PUBLISHED: dict[str, Table] = {
    table.name: table for paper in (panet, canet, sst, ltafnet, mfnet) for table in paper.TABLES
}
TABLES = PUBLISHED | {table.name: table for table in ours.TABLES}


def overview() -> str:
    """The names and titles of all tables, one per line."""
    width = max(map(len, TABLES))
    return "\n".join(f"{name:<{width}}  {table.title}" for name, table in TABLES.items())
