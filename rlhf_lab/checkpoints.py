"""Memoised artefacts: trained once, found again. The only cache of the course.

    @recipe(save=save_model, load=load_model)
    def sft(seed: int, rung: str = "1M"): ...

    sft(0)         # trains, saves and loads; the next call, in this process or another, only loads
    sft.cached(0)  # True

An artefact is a folder `<name>-<key>` of the cache ($RLHF_LAB_CACHE, by default build/cache). Its key is made of the
recipe's name, its arguments, and the code and files it depends on, so a changed line trains again what it concerns and
a changed comment nothing. Not seen: modules imported by a computed name, and edits made after the recipe's module was
imported (restart the kernel).
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhf_lab import ROOT
from rlhf_lab.errors import CourseError
from rlhf_lab.sources import NEVER_PART_OF_AN_ARTEFACT, Sources, file_digest

LONGEST_SHOWN = 60  # characters of an argument in a line of progress
TEMPORARY = ".tmp"  # ends the name of a folder in which an artefact is being made
log: list[dict] = []  # every artefact this process asked for: name, key (as in the folder), seconds to make it, hit
_training = threading.local()  # .inputs: what the recipe being run in this thread has asked for


class CacheError(CourseError):
    """The cache folder cannot be written."""


# --- recipes ---


def recipe(save: Callable, load: Callable) -> Callable:
    """Decorator: keep what the function returns on disk, by `save(value, folder)`, and return `load(folder)`.

    Arguments are numbers, strings, bools, None, tuples and frozen dataclasses of them. The decorated function has
    `.key(...)` and `.cached(...)`, which take its arguments. Raises ValueError for a function that is not at the top
    level of a module file (its code must be found from its name), and at a call for any other argument.
    """

    def decorate(function: Callable) -> Callable:
        name, module = function.__name__, function.__module__
        sources, signature = _sources_around(function), inspect.signature(function)

        def arguments(args: tuple, kwargs: dict) -> dict:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return {key: _plain(value, f"{name}({key}=...)") for key, value in bound.arguments.items()}

        def key(*args, **kwargs) -> str:
            parts = [f"{module}.{name}", sources.recipe_digest(module, name), arguments(args, kwargs)]
            return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

        def folder(*args, **kwargs) -> Path:
            return cache_folder() / f"{name}-{key(*args, **kwargs)[:16]}"

        @functools.wraps(function)
        def call(*args, **kwargs):
            made = functools.partial(function, *args, **kwargs)
            return stored(folder(*args, **kwargs), made, save, load, arguments(args, kwargs))

        call.key = key
        call.cached = lambda *args, **kwargs: whole(folder(*args, **kwargs))
        return call

    return decorate


def stored(folder: Path, train: functools.partial, save: Callable, load: Callable, arguments: dict):
    """`load(folder)` of an artefact that has its own way to a name, `<what it is>-<key>`: if it is not whole there,
    `train()` makes it and `save` writes it. Never twice, whichever processes ask, and never half. `arguments` are for
    those who list the cache. Raises CacheError where it cannot be written."""
    hit = whole(folder)
    if not hit:
        with writable(folder.parent):
            lock = locked(_lock(folder), f"waiting for another process, which is training {folder.name}")
        with lock:
            hit = whole(folder)  # another process may have made it while this one waited
            if not hit:
                _make(train, save, folder, arguments)
    _note(folder.name, _manifest(folder)["seconds"], hit)
    return load(folder)


def whole(folder: Path) -> bool:
    """Whether there is an artefact in this folder, all of it."""
    return not _fault(folder)


def reads(*paths: str) -> Callable:
    """Decorator: this function reads these files or folders of the repository, whose bytes become part of the key of
    every recipe that uses it. A path may name an environment variable: `@reads("$HH_RLHF_DIR")`."""
    return lambda function: function  # found in the source, by Sources


def _make(train: Callable, save: Callable, folder: Path, arguments: dict) -> None:
    """Make the artefact in a folder beside its own and rename that, so that nothing half-written bears its name."""
    if folder.exists():
        say(f"{folder.name}: {_fault(folder)}, so it is not read but made again")
    title = f"{train.func.__name__} ({', '.join(f'{key}={_short(value)}' for key, value in arguments.items())})"
    with _temporary(folder) as temporary:
        say(f"training {title} ...")
        start = time.perf_counter()
        outer, _training.inputs = getattr(_training, "inputs", None), {}
        try:
            value, inputs = train(), _training.inputs
        finally:
            _training.inputs = outer
        wall = time.perf_counter() - start
        manifest = {
            "recipe": f"{train.func.__module__}.{train.func.__name__}",
            "arguments": arguments,
            "seconds": round(wall - sum(inputs.values()), 3),  # its own, without its inputs'
            "inputs": sorted(inputs),
        }
        try:
            save(value, temporary)
            _seal(temporary, manifest)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"{title} was trained in {wall:.0f} s, but could not be saved ({error}): make room in {folder.parent}, "
                "or name another folder in RLHF_LAB_CACHE, and run it again. What was saved before will be found."
            ) from None
    if outer is not None:
        outer[folder.name] = wall
    say(f"{title}: done in {wall:.0f} s")


def _seal(folder: Path, manifest: dict) -> None:
    """Bring the files to the disk, and last the manifest, which says what they have to be."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush_to_disk(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    text = json.dumps(manifest | {"files": files}, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    _flush_to_disk(folder / "manifest.json")


def _note(artefact: str, seconds: float, hit: bool) -> None:
    """Record a use: for the recipe that asked, and in the log."""
    if getattr(_training, "inputs", None) is not None:
        _training.inputs.setdefault(artefact, 0.0)  # a hit; what was made is entered with its time already
    name, _, key = artefact.rpartition("-")
    add_to_log([{"name": name, "key": key, "seconds": seconds, "hit": hit}])


def add_to_log(uses: list[dict]) -> None:
    """Add uses of artefacts to `log` and, for other processes, to the file $RLHF_LAB_ARTEFACT_LOG."""
    log.extend(uses)
    if path := os.environ.get("RLHF_LAB_ARTEFACT_LOG"):
        with open(path, "ab", buffering=0) as file:  # one unbuffered write in append mode: lines do not mix
            file.write("".join(json.dumps(use) + "\n" for use in uses).encode())


def _plain(value, where: str):
    """The argument as JSON has it. Raises ValueError for one that could not be compared between processes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item, where) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | {key: _plain(item, where) for key, item in fields.items()}
    raise ValueError(
        f"{where} got a {type(value).__name__}: pass numbers, strings, bools, None, or tuples and dataclasses of them."
    )


def _short(argument) -> str:
    text = f"{argument['class']}(...)" if isinstance(argument, dict) else repr(argument)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


# --- the cache folder ---


def cache_folder() -> Path:
    return Path(os.environ.get("RLHF_LAB_CACHE") or ROOT / "build" / "cache")


def _manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _fault(folder: Path) -> str:
    """Why the artefact cannot be read; empty if it can."""
    if not folder.exists():
        return "it is not there"
    try:
        manifest = _manifest(folder)
        if not manifest["files"] or manifest["seconds"] < 0:
            return "manifest.json is damaged"
        for name, file in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != file["size"]:
                return f"{name} has {size} bytes instead of {file['size']}"
            if file_digest(folder / name) != file["sha256"]:
                return f"{name} is not what was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"
    return ""


def _lock(folder: Path) -> Path:
    return folder.parent / ".locks" / f"{folder.name}.lock"


def locked(path: Path, message: str):
    """A context in which no other process holds the lock at this path; `message` is said where it has to be awaited.
    The system frees the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(message)
        return lock.acquire()


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """An empty folder beside this one. It is there before the training begins, which would be lost without."""
    temporary = folder.with_name(folder.name + TEMPORARY)
    with writable(folder.parent):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed: we hold the lock
        temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A context in which an OSError becomes a CacheError: what is about to be written is needed for training."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The cache folder {folder} cannot be written ({error.strerror}), so nothing is trained: allow it, or name "
            "another folder in RLHF_LAB_CACHE."
        ) from None


def artefacts() -> dict[str, dict]:
    """The manifests of the whole artefacts in the cache, by folder name."""
    folders = sorted(path.parent for path in cache_folder().glob("*/manifest.json") if path.parent.suffix != TEMPORARY)
    return {folder.name: _manifest(folder) for folder in folders if not _fault(folder)}


def cost(names: Iterable[str]) -> dict[str, float]:
    """Seconds that each of these artefacts, and each they were made from, took by itself: one entry each."""
    known, queue, seconds = artefacts(), list(names), {}
    while queue:
        name = queue.pop()
        if name in known and name not in seconds:
            seconds[name] = known[name]["seconds"]
            queue += known[name]["inputs"]
    return seconds


def clear() -> int:
    """Delete every artefact, also the unfinished, but for those that are being made; returns how many. Raises
    CacheError where that is not allowed."""
    deleted = 0
    with writable(cache_folder()):
        for folder in [path for path in cache_folder().glob("*-*") if path.is_dir()]:
            with suppress(Timeout), FileLock(_lock(folder.with_name(folder.name.removesuffix(TEMPORARY))), timeout=0):
                shutil.rmtree(folder)
                deleted += 1
    return deleted


# --- what a key depends on ---


def _sources_around(function: Callable) -> Sources:
    """The package of the function (or its file, if it is in none), and rlhf_lab."""
    module, file = function.__module__, inspect.getsourcefile(function)
    if module == "__main__" or "." in function.__qualname__ or not file or not Path(file).is_file():
        raise ValueError(f"Recipe {function.__qualname__!r} must be a function at the top level of a module file.")
    path, depth = Path(file).resolve(), module.count(".")
    return _snapshot(path.parents[depth - 1] if depth else path)


@functools.cache
def code_digest(module: str) -> str:
    """Of the code of a module of rlhf_lab and of all it uses: for the names of artefacts that are no recipe's."""
    sources = _snapshot(ROOT / "rlhf_lab")
    return sources.digest(sources.closure({module}, NEVER_PART_OF_AN_ARTEFACT))


@functools.cache
def _snapshot(path: Path) -> Sources:
    """Read once a process, when recipes are imported: an edit made while a kernel runs must not lend the key of the new
    code to an artefact of the old."""
    return Sources(*{ROOT / "rlhf_lab", path})


# --- saving and loading ---


def save_json(value, folder: Path) -> None:
    """As the `save` of a recipe that returns lists, dicts, numbers and strings."""
    (folder / "value.json").write_text(json.dumps(value), encoding="utf-8")


def load_json(folder: Path):
    return json.loads((folder / "value.json").read_text(encoding="utf-8"))


def save_arrays(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """As the `save` of a recipe that returns named arrays."""
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / "arrays.safetensors")


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "arrays.safetensors")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
