"""What a result depends on: the source code it runs, without comments and docstrings, and the files that code reads."""

import ast
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_lab import ROOT

# What only reports, runs or stores is no part of an artefact; nor is the package's own __init__ (""): a new version
# number trains nothing again.
NEVER_PART_OF_AN_ARTEFACT = frozenset(
    ["", *"book checkpoints claims errors execution files notebook_files parallel plots sources statistics".split()]
    + [f"fine_tuning.{module}" for module in ("openai_backend", "server", "spending")]
)


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
    return [(file.relative_to(path.parent).as_posix(), file_digest(file)) for file in data]


def file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of_version(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _digest_of_version(path: Path, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
