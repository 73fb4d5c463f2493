"""The command line of the course: python -m rlhf_lab book|check|sync|tables|base|cache|serve."""

import argparse
import sys
from pathlib import Path

from rlhf_lab.errors import CourseError

# Modules are imported by the command that needs them, so that --help is there at once.


def book(arguments: argparse.Namespace) -> int:
    from rlhf_lab.book import run_book

    return run_book(arguments.notebooks, arguments.profile, arguments.seeds, arguments.jobs, arguments.scheduler)


def check(arguments: argparse.Namespace) -> int:
    from rlhf_lab.book import check

    check()
    return 0


def sync(arguments: argparse.Namespace) -> int:
    from rlhf_lab.notebook_files import sync

    print("\n".join(f"notebooks/{name}.ipynb brought up to date" for name in sync()) or "All notebooks are in sync.")
    return 0


def tables(arguments: argparse.Namespace) -> int:
    from rlhf_lab import ROOT, claims, conclusions

    shown = claims.tables(ROOT) | {"conclusions": conclusions.table(ROOT)}
    pages = [Path("README.md"), conclusions.PAGE]
    outdated = [page.as_posix() for page in pages if claims.rewrite(ROOT / page, shown, arguments.check)]
    for page in outdated:
        state = "does not show the results: type python -m rlhf_lab tables" if arguments.check else "brought up to date"
        print(page, state, file=sys.stderr if arguments.check else sys.stdout)
    if not outdated:
        print("All pages show the results.")
    return int(arguments.check and bool(outdated))


def base(arguments: argparse.Namespace) -> int:
    from rlhf_lab import pretraining

    pretraining.main()
    return 0


def cache(arguments: argparse.Namespace) -> int:
    from rlhf_lab import checkpoints

    if arguments.action == "clear":
        print(f"{checkpoints.clear()} artefacts deleted from {checkpoints.cache_folder()}")
        return 0
    artefacts = checkpoints.artefacts()
    megabytes = {name: sum(file["size"] for file in m["files"].values()) / 1e6 for name, m in artefacts.items()}
    for name, manifest in artefacts.items():
        print(f"{name:<40} {megabytes[name]:8.1f} MB {manifest['seconds']:8.0f} s  {manifest['arguments']}")
    print(f"{len(artefacts)} artefacts, {sum(megabytes.values()):.1f} MB, in {checkpoints.cache_folder()}")
    return 0


def serve(arguments: argparse.Namespace) -> int:
    from rlhf_lab.fine_tuning.server import serve

    serve(arguments.port, arguments.folder)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m rlhf_lab", description="RLHF by Experiment, from the command line.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=help, description=help)
        sub.set_defaults(function=function)
        return sub

    sub = command(book, "run notebooks; what is unchanged is not run again")
    sub.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a name, number (00) or part (0); default: all")
    sub.add_argument("--profile", default="laptop", help="how large everything is (default: laptop)")
    sub.add_argument("--seeds", type=int, default=1, help="repetitions; five or more publish the results (default: 1)")
    sub.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: 1)")
    sub.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, whose workers do what is independent")
    command(check, "time this machine; say how long each notebook will take and how much memory it needs")
    command(sync, "bring each .ipynb up to its .py, keeping the outputs of unchanged code")
    sub = command(tables, "bring the tables of the README and of docs up to the committed results")
    sub.add_argument("--check", action="store_true", help="change nothing, but fail if they are not")
    command(base, "train the base models of models/base again")
    sub = command(cache, "list or clear the trained artefacts")
    sub.add_argument("action", choices=["list", "clear"])
    sub = command(serve, "fine-tune for programs of this machine that speak OpenAI's language")
    sub.add_argument("--port", type=int, default=8008, help="where to listen, on loopback (default: 8008)")
    sub.add_argument("--folder", metavar="FOLDER", help="where files, jobs and models are kept (default: the cache)")
    return top


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a notebook or check that failed, 2 for a command that cannot be meant."""
    arguments = parser().parse_args(words)
    try:
        return arguments.function(arguments)
    except (ValueError, CourseError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
