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

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save_file

from rlhf_lab import ROOT

# What only reports, runs or stores is no part of an artefact; nor is the package's own __init__ (""): a new version
# number trains nothing again.
NEVER_PART_OF_AN_ARTEFACT = frozenset({"", "statistics", "claims", "plots", "book", "checkpoints"})

log: list[dict] = []  # every artefact this process asked for: name, key (as in the folder), seconds to make it, hit
_training = threading.local()  # .inputs: what the recipe being run in this thread has asked for


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
            place = folder(*args, **kwargs)
            hit = not _fault(place)
            if not hit:
                with _locked(place):
                    hit = not _fault(place)  # another process may have made it while this one waited
                    if not hit:
                        _make(functools.partial(function, *args, **kwargs), save, place, arguments(args, kwargs))
            _note(place.name, _manifest(place)["seconds"], hit)
            return load(place)

        call.key = key
        call.cached = lambda *args, **kwargs: not _fault(folder(*args, **kwargs))
        return call

    return decorate


def reads(*paths: str) -> Callable:
    """Decorator: this function reads these files or folders of the repository, whose bytes become part of the key of
    every recipe that uses it. A path may name an environment variable: `@reads("$HH_RLHF_DIR")`."""
    return lambda function: function  # found in the source, by Sources


def _make(train: Callable, save: Callable, folder: Path, arguments: dict) -> None:
    """Make the artefact in a folder beside its own and rename that, so that nothing half-written bears its name."""
    if folder.exists():
        say(f"{folder.name}: {_fault(folder)}, so it is not read but made again")
    title = f"{train.func.__name__} ({', '.join(f'{key}={_short(value)}' for key, value in arguments.items())})"
    say(f"training {title} ...")
    start = time.perf_counter()
    outer, _training.inputs = getattr(_training, "inputs", None), {}
    try:
        value, inputs = train(), _training.inputs
    finally:
        _training.inputs = outer
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed: we hold the lock
    temporary.mkdir()
    save(value, temporary)
    files = {}
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        _flush_to_disk(path)
        files[path.relative_to(temporary).as_posix()] = {"size": path.stat().st_size, "sha256": _file_digest(path)}
    wall = time.perf_counter() - start
    manifest = {
        "recipe": f"{train.func.__module__}.{train.func.__name__}",
        "arguments": arguments,
        "seconds": round(wall - sum(inputs.values()), 3),  # its own, without its inputs'
        "inputs": sorted(inputs),
        "files": files,
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _flush_to_disk(temporary / "manifest.json")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    if outer is not None:
        outer[folder.name] = wall
    say(f"{title}: done in {wall:.0f} s")


def _note(artefact: str, seconds: float, hit: bool) -> None:
    """Record a use: for the recipe that asked, in `log`, and across processes in the file $RLHF_LAB_ARTEFACT_LOG."""
    if getattr(_training, "inputs", None) is not None:
        _training.inputs.setdefault(artefact, 0.0)  # a hit; what was made is entered with its time already
    name, _, key = artefact.rpartition("-")
    log.append({"name": name, "key": key, "seconds": seconds, "hit": hit})
    if path := os.environ.get("RLHF_LAB_ARTEFACT_LOG"):
        with open(path, "ab", buffering=0) as file:  # one unbuffered write in append mode: lines do not mix
            file.write((json.dumps(log[-1]) + "\n").encode())


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
    return f"{argument['class']}(...)" if isinstance(argument, dict) else repr(argument)


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
        for name, file in _manifest(folder)["files"].items():
            size = (folder / name).stat().st_size
            if size != file["size"]:
                return f"{name} has {size} bytes instead of {file['size']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return "manifest.json is damaged"
    return ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes an artefact. The system frees the lock of a process that dies."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process, which is training {folder.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def artefacts() -> dict[str, dict]:
    """The manifests of the whole artefacts in the cache, by folder name."""
    folders = sorted(path.parent for path in cache_folder().glob("*/manifest.json"))
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
    """Delete every artefact, also the unfinished; returns how many."""
    folders = [path for path in cache_folder().glob("*-*") if path.is_dir()]
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders)


# --- what a key depends on ---


class Sources:
    """The source code of some packages (folders) or single modules (files), as it is when this object is made."""

    def __init__(self, *paths: Path):
        self.files = {}  # module -> its file
        for top in paths:
            for file in [top] if top.is_file() else sorted(top.rglob("*.py")):
                parts = file.relative_to(top.parent).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
        self._tops = {top for top in paths if top.is_dir()}
        self._texts = {module: file.read_text(encoding="utf-8") for module, file in self.files.items()}
        self.tree = functools.cache(self._tree)
        self._recipe = functools.cache(self._recipe_needs)

    def _tree(self, module: str) -> ast.Module:
        return stripped(self._texts[module])

    def imports(self, node: ast.AST, module: str = "") -> Iterator[tuple[str, str, str]]:
        """(bound name, what it is, module of these sources or "") for each import below `node`."""
        is_package = module in self.files and self.files[module].stem == "__init__"
        package = module if is_package else module.rpartition(".")[0]
        for item in ast.walk(node):
            if isinstance(item, ast.Import):
                for alias in item.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    yield bound, alias.name, alias.name if alias.name in self.files else ""
            elif isinstance(item, ast.ImportFrom):
                base = importlib.util.resolve_name("." * item.level + (item.module or ""), package)
                for alias in item.names:
                    full = f"{base}.{alias.name}"
                    found = full if full in self.files else base if base in self.files else ""
                    yield alias.asname or alias.name, full, found

    def closure(self, modules: Iterable[str], without: frozenset[str] = frozenset()) -> set[str]:
        """These modules and all they import, inside functions too, with the packages they lie in."""
        found, queue = set(), list(modules)
        while queue:
            module = queue.pop()
            if module in found or module not in self.files or module.partition(".")[2] in without:
                continue
            found.add(module)
            queue.append(module.rpartition(".")[0])
            queue += [imported for _, _, imported in self.imports(self.tree(module), module)]
        return found

    def digest(self, modules: Iterable[str]) -> str:
        """Of whole modules, with the files they read."""
        modules = sorted(modules)
        files = {path for module in modules for path in self._files_read(module)}
        return _digest([ast.dump(self.tree(module)) for module in modules], files)

    def recipe_digest(self, module: str, name: str) -> str:
        """Of a recipe: its own code, what it needs of its module, and all of the other modules it needs."""
        return _digest(*self._recipe(module, name))

    def _recipe_needs(self, module: str, name: str) -> tuple[list[str], set[Path]]:
        """Definition by definition within the module, so that a change of one recipe leaves the others alone."""
        statements: dict[str, list[ast.AST]] = {}
        for statement in self.tree(module).body:
            for bound in _bound_names(statement):
                statements.setdefault(bound, []).append(statement)
        seen, code, modules, files, queue = {name}, set(), set(), set(), [name]
        while queue:
            current = queue.pop()
            for statement in statements.get(current, []):
                if isinstance(statement, (ast.Import, ast.ImportFrom)):  # only the name that is used
                    bindings = [b for b in self.imports(statement, module) if b[0] == current]
                    code.update(f"{bound} = {full}" for bound, full, _ in bindings)
                else:
                    bindings = list(self.imports(statement, module))
                    code.add(ast.dump(statement))
                    files |= _files_marked(statement)
                    used = {item.id for item in ast.walk(statement) if isinstance(item, ast.Name)} - seen
                    seen |= used
                    queue += used
                modules |= {imported for _, _, imported in bindings if imported}
        # What comes back to this very module by an import is there already, by definition.
        modules = self.closure(modules, NEVER_PART_OF_AN_ARTEFACT) - {module}
        code |= {ast.dump(self.tree(other)) for other in modules}
        return sorted(code), files.union(*(self._files_read(other) for other in modules))

    def _files_read(self, module: str) -> set[Path]:
        """What its functions are marked to read, and the folder of its sub-package, for the data files in there."""
        folder = self.files[module].parent
        return _files_marked(self.tree(module)) | ({folder} if self._tops & set(folder.parents) else set())


def stripped(source: str) -> ast.Module:
    """The syntax tree without comments, docstrings and other bare strings."""
    return _WithoutStrings().visit(ast.parse(source))


class _WithoutStrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _sources_around(function: Callable) -> Sources:
    """The package of the function (or its file, if it is in none), and rlhf_lab."""
    module, file = function.__module__, inspect.getsourcefile(function)
    if module == "__main__" or "." in function.__qualname__ or not file or not Path(file).is_file():
        raise ValueError(f"Recipe {function.__qualname__!r} must be a function at the top level of a module file.")
    path, depth = Path(file).resolve(), module.count(".")
    return _snapshot(path.parents[depth - 1] if depth else path)


@functools.cache
def _snapshot(path: Path) -> Sources:
    """Read once a process, when recipes are imported: an edit made while a kernel runs must not lend the key of the new
    code to an artefact of the old."""
    return Sources(*{ROOT / "rlhf_lab", path})


def _bound_names(statement: ast.AST) -> set[str]:
    """Names that a statement at the top level of a module binds, in its blocks too (`try: import ...`)."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names


def _files_marked(tree: ast.AST) -> set[Path]:
    """The paths in the `@reads(...)` decorators below `tree`."""
    paths = set()
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "reads":
                paths |= {ROOT / os.path.expandvars(ast.literal_eval(path)) for path in call.args}
    return paths


def _digest(code: list[str], paths: Iterable[Path]) -> str:
    contents = sorted(item for path in paths for item in fingerprint(path))
    return hashlib.sha256(json.dumps([code, contents]).encode()).hexdigest()


def fingerprint(path: Path) -> list[tuple[str, str]]:
    """(name, sha256) of a file, or of each data file of a folder (not code, notes, hidden files); [] if absent."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    data = [file for file in files if file.suffix not in (".py", ".pyc", ".md") and not file.name.startswith(".")]
    return [(file.relative_to(path.parent).as_posix(), _file_digest(file)) for file in data]


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of_version(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _digest_of_version(path: Path, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
