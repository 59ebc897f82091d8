"""What tests of the command line share: running a command, on one thread."""

import pytest
import torch

from benchmarks.cli import main


@pytest.fixture(scope="module")
def one_thread():
    """The models here are too small for more, least of all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`run("validate", ...)` runs `itl validate ...`: (exit status, stdout, stderr)."""

    def go(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return go
