"""The notebook runs from top to bottom, and its agents come out as its prose says."""

import importlib.util
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "rollouts.ipynb"

# Run in the notebook's own kernel after its last cell.
PROBE = """
import json
print(json.dumps({
    "reward": reward,
    "counts": counts.to_dict("index"),
    "bars": len(axes.patches),
    "folder is gone": not Path(folder.name).exists(),
}))
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text())


def test_the_notebook_is_stored_without_outputs(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs_and_finds_what_it_says(require, tmp_path, monkeypatch):
    missing = [m for m in ("nbclient", "nbformat", "ipykernel") if not importlib.util.find_spec(m)]
    require(not missing, f"{', '.join(missing)} are not installed: pip install 'itl[notebooks]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nothing of a person's own profile
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    # A cell that fails raises CellExecutionError with its traceback.
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    found = json.loads(notebook.cells[-1].outputs[0].text)
    assert found["reward"] == 1.0
    assert found["bars"] == len(found["counts"]) == 3
    assert found["folder is gone"]
    expert, no_tool, chance = (found["counts"][name] for name in ("expert", "no-tool", "random"))
    assert (expert["recall"], expert["queries per episode"]) == (1.0, 1.0)
    assert no_tool["queries per episode"] == 0.0
    assert chance["recall"] < no_tool["low"] < no_tool["high"] < expert["low"]
    for row in found["counts"].values():
        assert row["n"] == 1_000
        assert row["low"] <= row["recall"] <= row["high"]
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == 1
