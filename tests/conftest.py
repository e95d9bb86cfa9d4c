"""Options, paths and fixtures of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes are annotated at public edges. Here, and only here, they are checked, where functions are pure; elsewhere the
# library's own checks speak first, and their messages are what is tested.
FUNCTIONS = ["_random", "metrics.ranking", "metrics.similarity", "metrics.statistics"]
install_import_hook([f"backlit.{name}" for name in FUNCTIONS], "beartype.beartype")

sys.path.insert(0, str(Path(__file__).parent))  # the helpers whose names begin with an underscore
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: their sums are then the same, bit for bit


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real networks and images."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("BACKLIT_SHARED", default))
    if not (folder / "models").is_dir():
        pytest.skip(f"no real networks and images at {folder}; BACKLIT_SHARED names the folder that has them")
    return folder
