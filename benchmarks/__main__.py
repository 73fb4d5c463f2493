"""The command line of the benchmarks: python -m benchmarks [NAME ...] [--repeats N]."""

import argparse
import importlib
import os
import sys

# Modules of this folder: the docstring says what is timed, `measure(repeats)` gives the rows, PROMISES what ratio a row
# must reach. `run` imports them, and torch with them: the environment has to be set by then.
BENCHMARKS = ("sampling", "training", "reward_model", "ppo", "seeds")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the course's code with others'.")
    top.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    top.add_argument("--repeats", type=int, default=5, help="runs of each contender (default: 5)")
    return top


def run(names: list[str], repeats: int) -> int:
    """Print the table of each benchmark, and write docs/speed.md if none is left out; returns 1 if a promise is missed.

    Raises ValueError for a benchmark that does not exist, and for numbers below one.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ValueError(f"There is no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}.")
    if repeats < 1:
        raise ValueError("The number of repeats must be at least 1.")
    import torch
    from transformers.utils import logging

    from benchmarks import report
    from rlhf_lab import ROOT
    from rlhf_lab.book import sgemm_gflops

    chosen = tuple(name for name in BENCHMARKS if name in names or not names)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    peak, kept, sections = sgemm_gflops(), True, []
    for name in chosen:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        rows = benchmark.measure(repeats)
        kept = kept and all(row.kept for row in rows)
        sections.append(report.section(benchmark, rows))
        print(sections[-1], flush=True)
    if chosen == BENCHMARKS:
        (ROOT / report.PAGE).write_text(report.page(sections, repeats, peak), encoding="utf-8", newline="\n")
        print(f"{report.PAGE.as_posix()} written")
    return 0 if kept else 1


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a promise is missed, 2 for a command that cannot be meant."""
    arguments = parser().parse_args(words)
    try:
        return run(arguments.names, arguments.repeats)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    # One thread, for both sides; no progress bars, which would be timed too; nothing waits for the Hub.
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    sys.exit(main())
