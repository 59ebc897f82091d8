"""Folders of data, which are written anew only by what has made them."""

import json
from pathlib import Path
from typing import Any

from itl_env.errors import ConfigError


def check_data_folder(folder: Path, own: set[str], report: Path, settings: Any) -> None:
    """Raise ConfigError if something else is at `folder`, or data of other settings.

    own: names of the files of such a folder, besides its report, which holds the settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder.")
    # Hidden files are what an interrupted write has left, or the system's.
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = {name for name in there if not name.startswith(".")}
    if others := others - own - {report.name}:
        raise ConfigError(f"{folder} holds other things, such as {min(others)}; name a new folder.")
    if report.name in there:
        try:
            made = json.loads(report.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, LookupError, TypeError):
            made = None
        if made != settings:
            raise ConfigError(f"{folder} holds data of other settings; name a new folder.")
