"""What the studies of a calculator tool have measured, on disk: cells, rows and the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.interventions import Row
from benchmarks.progress import Progress
from itl_env.files import read_json, whole_file, write_text


class Cells:
    """What has been measured, a file for each cell. total: how many a study has."""

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total, self.done = folder, total, 0

    def measured(
        self, name: str, made_by: Mapping[str, Any], measure: Callable[[], Any], progress: Progress
    ) -> Any:
        """What a cell holds; measured, and written down, if it is not there or made by another."""
        file = self.folder / f"{name}.json"
        wanted = json.loads(json.dumps(made_by))
        if file.exists():
            there = read_json(file, "Remove it, and it is measured anew.")
            if there["made_by"] == wanted:
                self._count(progress, name)
                return there["found"]
        found = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"made_by": wanted, "found": found}) + "\n")
        self._count(progress, name)
        return found

    def _count(self, progress: Progress, name: str) -> None:
        self.done += 1
        progress.at(self.done, name, always=True)


def publish_study(
    out: Path, results: Row, report: Callable[[Row], str], tell: Callable[[str], None]
) -> None:
    """Write results as JSON, their rows and differences as CSV, and the report; tell the report."""
    import pandas as pd

    for name in ("rows", "differences"):
        if name in results:
            write_text(out / f"{name}.csv", pd.DataFrame(results[name]).to_csv(index=False))
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    text = report(results)
    write_text(out / "report.md", text)
    tell(text)


def write_lines(rows: Sequence[Row], file: Path) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial, partial.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
