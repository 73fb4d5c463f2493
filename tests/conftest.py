"""What all tests share: one thread, no network, a cache that lasts, and the folder of real human preferences."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Set here, before any test imports torch or starts a notebook: a process takes one thread, so that processes may run
# side by side; nothing waits for the Hub; and what a test trains is found again by the next run.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RLHF_LAB_CACHE", str(ROOT / "build" / "test-cache"))

# The same examples in every run, and no time limit for one: a verdict depends neither on luck nor on a busy machine.
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")


def check_readable(folder: Path) -> None:
    """Raise OSError unless `folder` holds `<subset>/<split>.jsonl.gz` files that can be opened."""
    files = list(folder.glob("*/*.jsonl.gz"))
    if not files:
        raise FileNotFoundError("it holds no <subset>/<split>.jsonl.gz")
    for file in files:
        file.open("rb").close()


def pytest_configure(config):
    """Stop where the real data was promised and is not there: its tests must not be skipped in silence."""
    if (name := os.environ.get("HH_RLHF_DIR")) is None:
        return
    folder = Path(name).absolute()
    try:
        check_readable(folder)
    except OSError as error:
        raise pytest.UsageError(
            f"HH_RLHF_DIR names the folder '{name}', which cannot be read ({error}): "
            "point it at a copy of hh-rlhf, or unset it to skip the tests on real data."
        ) from None
    os.environ["HH_RLHF_DIR"] = str(folder)  # absolute: a notebook runs in a folder of its own


def pytest_collection_modifyitems(items):
    if "HH_RLHF_DIR" in os.environ:
        return
    skip = pytest.mark.skip(reason="HH_RLHF_DIR is not set: point it at a copy of hh-rlhf")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(skip)
