"""Rows of runs as CSV files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itl_env.files import write_text
from itl_train.sweep import Row

RUNS = "runs.csv"


def columns(settings: Mapping[str, Any]) -> Row:
    """Settings as columns of a row, without those that say nothing: a table has no place for them,
    and reads them back as missing.
    """
    return {name: value for name, value in settings.items() if value not in (None, ())}


def read_rows(file: Path) -> dict[str, Row]:
    """The rows of a CSV file by their cell; none if there is no such file."""
    import pandas as pd

    if not file.exists():
        return {}
    rows = pd.read_csv(file).to_dict("records")
    return {row["cell"]: {k: v for k, v in row.items() if not pd.isna(v)} for row in rows}


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    import pandas as pd

    write_text(file, pd.DataFrame(rows).to_csv(index=False))
