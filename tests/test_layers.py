"""The packages are layers: imports point downwards, and the world needs no machine learning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = ["itl_env", "itl_agents", "itl_train", "benchmarks"]  # from the lowest to the highest
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval"}
# Third-party packages that only the named layers may import, wherever in the file.
RESERVED = {
    "torch": {"itl_agents", "itl_train", "benchmarks"},
    "transformers": {"itl_agents", "itl_train", "benchmarks"},
    "accelerate": {"itl_train", "benchmarks"},
    "peft": {"itl_agents", "itl_train", "benchmarks"},
    "trl": {"itl_train", "benchmarks"},
}
# The world's export writes Hugging Face datasets, when asked to.
OPTIONAL_IN_ENV = {
    "export.py": {"datasets", "pyarrow"},
    "trivia.py": {"datasets"},
    "tool_rows.py": {"datasets"},
    "sentences.py": {"datasets"},
}


def imports(path):
    """The top-level package of each absolute import, and whether it runs when the file is read."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    delayed = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            yield name.partition(".")[0], node not in delayed


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_downwards(package):
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(package)
        for name, _ in imports(path)
        if name in above or package not in RESERVED.get(name, {package})
    ]
    assert not wrong


def test_the_world_imports_datasets_only_to_export():
    wrong = [
        f"{path.name} imports {name}"
        for path in files("itl_env")
        for name, at_once in imports(path)
        if name in HEAVY | {"pyarrow"}
        and (at_once or name not in OPTIONAL_IN_ENV.get(path.name, set()))
    ]
    assert not wrong


def test_importing_the_world_loads_no_machine_learning():
    code = "import sys, itl_env; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "itl_env" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("command", ["--help", "facts build --help", "facts query", "validate"])
def test_quick_commands_load_no_machine_learning(command, world):
    arguments = command.split()
    if command == "facts query":
        arguments += ["--database", world, "Nobody"]
    elif command == "validate":
        arguments += ["--database", world, "--limit", "5"]
    code = (
        "import sys; from benchmarks.cli import main; main(sys.argv[1:]); "
        "print('loaded', *{name.partition('.')[0] for name in sys.modules})"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    loaded = out.rpartition("loaded")[2].split()
    assert "benchmarks" in loaded
    assert not HEAVY & set(loaded)
