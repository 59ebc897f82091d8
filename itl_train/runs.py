"""Folders of many runs: which command they belong to, and a table of all that is in them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from itl_env.errors import ConfigError, ITLError
from itl_env.files import write_text
from itl_train.run_folder import (
    CONFIG,
    EVALUATIONS,
    FAILURE,
    TABLE,
    RunFolder,
    first_entry,
    read_yaml,
)

if TYPE_CHECKING:
    import pandas as pd

MADE_BY = "made-by.txt"  # in a folder of many runs: which command it belongs to


def claimed(path: Path, maker: str, own: str = "") -> bool:
    """Whether a folder of many runs is this maker's already; False if it is new or empty.

    maker: the command, such as `itl sweep memory`. own: pattern of a file by which a folder that
    does not say whose it is can be told to be the maker's. Raises ConfigError if it is another's.
    """
    found = first_entry(path)
    file = path / MADE_BY
    if file.exists():
        if (there := file.read_text(encoding="utf-8").strip()) != maker:
            raise ConfigError(
                f"{path} belongs to `{there}`, not to `{maker}`; name another folder."
            )
        return True
    if found is not None and not (own and any(path.glob(own))):
        raise ConfigError(
            f"{path} holds {found!r}, but nothing of `{maker}`; name a new or empty folder."
        )
    return False


def claim(path: Path, maker: str, own: str = "") -> None:
    """Begin or reopen a folder of many runs; see `claimed`."""
    if claimed(path, maker, own):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / MADE_BY, f"{maker}\n")
    except OSError as error:
        raise ITLError(f"Cannot write to {path}: {error.strerror}.") from None


def load_runs(folder: str | Path) -> "pd.DataFrame":
    """One row for each run in a folder, however deep, or an empty table.

    Columns are `run`, its place in the folder, its settings, the newest value of each of its
    metrics, and what `itl eval --every` has measured of its last checkpoint, unless a setting has
    the same name. Raises ConfigError if there is no such folder.
    """
    import pandas as pd

    if not Path(folder).is_dir():
        raise ConfigError(f"There is no folder {folder}.")
    rows = []
    for file in sorted(Path(folder).rglob(CONFIG)):
        settings = read_yaml(file)
        if "members" in settings:  # an ensemble, whose members are runs
            continue
        if not RunFolder(file.parent).checkpoints.is_dir():  # a benchmark's, which holds runs
            continue
        if (file.parent.parent / FAILURE).exists():  # a member of one that failed, and was run anew
            continue
        newest: dict[str, Any] = {}
        for row in RunFolder(file.parent).rows():
            newest |= row
        if (table := file.parent / EVALUATIONS / TABLE).exists():
            measured = pd.read_csv(table).iloc[-1].dropna().to_dict()
            newest |= {name: value for name, value in measured.items() if name not in newest}
        rows.append({"run": str(file.parent.relative_to(folder)), **newest, **settings})
    return pd.DataFrame(rows)
