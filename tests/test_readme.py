"""The README's examples run as they stand, and what it links to is there."""

import re
from pathlib import Path

import pytest

from .itl_train.test_sft import tiny_llama

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks[:2]:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[-2:] == ["1.0", "True"]
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 3200
    # The model, which is the hub's, is replaced by a small one, and trained for two steps.
    local = blocks[2].replace(
        "HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_llama(tmp_path / "m"))
    )
    local = local.replace("max_steps=40", "max_steps=2")
    exec(compile(local, "README.md", "exec"), {})
    capsys.readouterr()
    exec(compile(blocks[3], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert f"print(prompt, result, reward)  # {printed}" in blocks[3]
    exec(compile(blocks[5], "README.md", "exec"), {})
    assert f"print(agent.circuit.n_nonzero, right)  # {capsys.readouterr().out}" in blocks[5]
    assert (tmp_path / "runs" / "trl" / "checkpoint-2").is_dir()


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_command_installs_and_runs_the_main_job() -> None:
    first = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[0]
    assert "pip install -c constraints.txt -e ." in first
    assert first.strip().endswith("itl quickstart")
