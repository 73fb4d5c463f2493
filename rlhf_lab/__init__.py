"""RLHF by Experiment: the helper modules of the course. Each is small, has one subject and can be imported alone."""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parents[1]  # the checkout: the package is installed in editable mode
