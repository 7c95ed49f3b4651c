"""Makes ``import oracles`` work for every way the tests are started (pytest or python -m pytest,
editable install or wheel)."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

if workers := int(
    os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")
):  # they, and the processes they start, share the cores
    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)

torch.manual_seed(0)  # of what modules draw when they are collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test draws the same numbers each time, and its networks have the same weights, alone or
    among others, in any process."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For thousands of operations on small tensors, where threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The saved pipelines of tests/pipelines.py, each made when it is first asked for."""
    from pipelines import saved

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = saved(name, tmp_path_factory.mktemp(name))
            return self[name]

    return Made()
