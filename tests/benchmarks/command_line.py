"""What tests of the command line share: where it runs, what it says, and a model too small to wait
for.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TINY = (
    *("--n-people", "8", "--n-unseen", "4", "--d-model", "16", "--n-layers", "1", "--n-heads", "2"),
    *("--n-steps", "4", "--log-every", "2", "--n-evaluate", "2", "--checkpoint-every", "2"),
)


def sentence(err: str) -> str:
    """The one line that a failed command says."""
    (line,) = err.splitlines()
    assert line.startswith("itl: ")
    return line


def smoke(study: str, out: Path) -> tuple[object, ...]:
    """The command of a study that trains in this process, small."""
    return ("bench", "run", study, "--preset", "smoke", "--launcher", "here", "--out", out)
