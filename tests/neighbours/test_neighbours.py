"""Our environments inside the packages of others, each in an environment of its own.

The pins of these packages contradict each other's and ours, so the files `check_*.py` run with the
Python of another virtual environment; `.ci/neighbours` makes them and says where they are:

    eval "$(.ci/neighbours /tmp/neighbours)"
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 900  # seconds, for a busy machine: either check takes some twenty


@pytest.mark.parametrize("package", ["verifiers", "openenv"])
def test_the_environments_run_in(package, require, tmp_path):
    variable = f"ITL_{package.upper()}_PYTHON"
    python = os.environ.get(variable)
    require(python, f"no Python with {package} is named by {variable} (.ci/neighbours makes one)")
    # Of our own settings none may reach the other pytest, where plugins are missing.
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    settings.pop("PYTHONPATH", None)
    command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", f"--basetemp={tmp_path}/inner"]
    command += [f"tests/neighbours/check_{package}.py"]
    # From the root, which `-m` puts on the path: it is this working tree that is tested.
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=LIMIT
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    last = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"\d+ passed(, \d+ warnings?)? in .*", last), report
