"""A run's folder: its configuration, the versions it ran with, and its metrics."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from itl_env.episode import package_versions
from itl_env.errors import ConfigError, ITLError
from itl_env.files import write_text

CONFIG = "config.yaml"
EVALUATIONS = "evaluations"  # what `itl eval --every` has measured
TABLE = "table.csv"  # a line for each checkpoint, in that folder  # of a run: its settings
FAILURE = "failure.txt"  # beside or above a run: why the job that trained it failed


class RunFolder:
    """`config.yaml`, `versions.json`, `metrics.jsonl` and `checkpoints/` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Begin a run in `path`, or reopen the run that is there; raises what `begin` raises."""
        begin(path, config)
        folder = cls(path)
        folder.checkpoints.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training in the folder, and from clearing up there.

        Raises ITLError if one trains there already.
        """
        lock = FileLock(self.path / ".training.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ITLError(
                f"Another process is training in {self.path}; wait for it, or name another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def log(
        self, row: dict[str, Any], on_metrics: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Append a row to the metrics and hand it on."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if on_metrics is not None:
            on_metrics(row)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that was cut off by a kill is left out."""
        rows: list[dict[str, Any]] = []
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
        return rows

    def forget_metrics_after(self, step: int) -> None:
        """Drop rows of steps that will be taken again."""
        if self.metrics.exists():
            rows = [row for row in self.rows() if row["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def forget(self) -> None:
        """Remove what was trained, so that the run begins anew."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)

    def last_evaluation(self) -> dict[str, Any] | None:
        """The newest row that holds a recall."""
        found = [row for row in self.rows() if "recall_seen" in row]
        return found[-1] if found else None

    def warn(self, message: str) -> None:
        """Tell the user something that does not stop the run."""
        warnings.warn(message, stacklevel=3)


def has_begun(path: Path, config: dict[str, Any]) -> bool:
    """Whether the folder holds the run of this configuration; False if it is new or empty.

    Raises ConfigError if it holds another run or something else.
    """
    elsewhere = "choose another folder, or remove it."
    found = first_entry(path)
    if (path / CONFIG).exists():
        there, wanted = read_yaml(path / CONFIG), _as_read(config)
        if there.keys() != wanted.keys():
            raise ConfigError(f"{path} holds a run of another kind; {elsewhere}")
        if differing := [key for key in wanted if there[key] != wanted[key]]:
            key = differing[0]
            raise ConfigError(
                f"{path} holds a run with {key}={there[key]!r}, not {wanted[key]!r}; {elsewhere}"
            )
        return True
    if found not in (None, "versions.json"):  # which a run leaves that was killed as it began
        raise ConfigError(f"{path} holds {found!r} but no run; name a new or empty folder.")
    return False


def first_entry(path: Path) -> str | None:
    """The first name in a folder; None if there is none, or no folder.

    Those that begin with a dot do not count: what a kill left unfinished, and what systems put
    there. Raises ConfigError if the path is a file.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; name a folder.")
    names = (entry.name for entry in path.iterdir()) if path.is_dir() else ()
    return min((name for name in names if not name.startswith(".")), default=None)


def begin(path: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml` and `versions.json` in a new folder; nothing if they are there already.

    Raises what `has_begun` raises, and ITLError if the folder cannot be written.
    """
    try:
        if has_begun(path, config):
            return
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "versions.json", json.dumps(versions(), indent=1) + "\n")
        write_text(path / CONFIG, yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise ITLError(f"Cannot write the run folder {path}: {error.strerror}.") from None


def _as_read(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as they come back from YAML, which knows no tuples, say."""
    read: dict[str, Any] = yaml.safe_load(yaml.safe_dump(config, sort_keys=False))
    return read


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError that names it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}," if mark is not None else path
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where} is not YAML: {what}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a mapping of settings.")
    return content


def run_settings(folder: Path) -> dict[str, Any]:
    """The configuration of the run that a folder is, or is a checkpoint of; {} if of none."""
    for place in (folder, folder.parent.parent):
        if (place / CONFIG).is_file():
            return read_yaml(place / CONFIG)
    return {}


def versions() -> dict[str, str]:
    """Python, the packages that matter, and the git commit of the working folder if it has one."""
    found = {
        "python": sys.version.split()[0],
        **package_versions(),
        **package_versions(("accelerate", "datasets", "peft", "trl")),
    }
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5
        )
        found["git_commit"] = commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # not run from a checkout
    return found
