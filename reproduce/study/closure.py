"""The code that a result depends on: every definition that a function reaches, walked in the syntax trees.

A module is taken apart into its top-level statements, and a function reaches those that its names refer to:
``lpe.DeepEnsemble`` is the class in ``lpe/ensembles/deep.py`` that ``lpe/__init__.py`` hands on, and not all
that ``lpe`` imports. A class is one definition, with its methods. Scopes are Python's own (``symtable``): a
local variable is not the function of the same name.

Counted: imports inside functions; what a module that something is taken from, or a package around it, does
when it is imported beside naming things; the whole of a module that is handed on as an object.

A user's own modules, those of no package that is installed, are followed like this repository's. Of them
counts more: what the own modules that they import do when they are imported, whether a name of theirs is used
or not; libraries of which no name is used; every decorated definition, for its decorator may put it where it
is found without its name (the standard library's do not). This repository's modules do nothing of this.

Not counted: comments, docstrings, places in the file, ``if TYPE_CHECKING:``, ``if __name__ == "__main__":``;
names in annotations, where the module postpones these; modules that are imported and nothing is taken from;
statements that ask whether a package is installed (``CHECKS``); the folder of a file that is run by its path.

What cannot be followed is refused: a module imported by a name that is made at run time, code made from text,
``sys.modules[…]``, classes found as subclasses, a name that its module does not have.

What the walk cannot see: the class of an object that is handed in (where its methods matter, name it as a
root as well); files and environment variables that the code reads; a call whose result gets a name in the
module and that changes something else beside; an attribute of ``sys.modules.get(…)``.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import hashlib
import importlib.metadata
import itertools
import symtable
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from lpe.errors import InputError
from lpe.provenance import REPOSITORY


@dataclass(frozen=True)
class Without:
    """A class but for some methods: a key has their results, so that their code need not be in it."""

    of: type
    methods: tuple[str, ...]


Root = Callable[..., object] | type | Without | ModuleType | str
"""A function or class at the top of its module, a partial of one, a module, "module" or "module:name"."""

PACKAGES = ("lpe", "reproduce", "benchmarks")
DEFINED_BY = {
    "lpe.number_systems.kernels": "lpe.number_systems.kernels.reference",
    "lpe.number_systems.fast_packing": "lpe.number_systems.packing",
}
"""Modules that compute what another one defines, and that one, which counts in their place.

Tests hold them to it bit for bit: kernels that are faster make nothing new. ``kernels`` itself chooses
between backends.
"""
APART = (
    "reproduce.study.closure",
    "reproduce.study.keys",
    "reproduce.study.functions",
    "lpe.extras",
    "lpe.interruption",
    "lpe.training.checkpoints",
    "lpe.training.processes",
    "lpe.training.pooled_norms",
)
"""Modules that make keys: where a change of them matters, the keys change, and not for its code.

The third runs a user's files, whose functions are in a key themselves. The others make no key and no result:
one says which package is missing, one ends commands; by checkpoints a killed training comes to the numbers of
one that was not killed, and by the last two several processes come to those of one, which tests hold them to;
their number is in the key.
"""

CHECKS = ("lpe.extras.needs",)
"""Functions that end in an error or do nothing: a statement that calls one makes no result."""

_IMPORTERS = ("importlib.import_module", "importlib.__import__", "__import__")
_REFUSED = (*_IMPORTERS, "exec", "eval", "compile", "globals", "runpy", "importlib.util", "pkgutil")
_FINDS_CLASSES = ("__subclasses__", "__init_subclass__")
_BUILTINS = tuple(name for name in _REFUSED if "." not in name and name not in sys.stdlib_module_names)

_Chain = tuple[str, ...]


@dataclass(frozen=True)
class Closure:
    """All that some code depends on.

    Args:
        code: a hash of the definitions, 16 hexadecimal digits.
        definitions: "module:name" of each, sorted.
        packages: top-level names of the modules that are imported from elsewhere, sorted; the standard
            library's are left out.
    """

    code: str
    definitions: tuple[str, ...]
    packages: tuple[str, ...]


class _Part:
    """A top-level statement of a module; of the names in it, those in ``scope`` are the module's."""

    def __init__(self, module: _Module, name: str, node: ast.stmt, scope: frozenset[str]) -> None:
        self.module, self.name, self.node, self.scope = module, name, node, scope

    def __str__(self) -> str:
        return f"{self.module.label}:{self.name}"


@dataclass(frozen=True)
class _Import:
    """What an import binds a name to: a module, or an attribute of it.

    Args:
        imported: the dotted name of what it imports, which ``import a.b`` does not bind a name to.
    """

    module: str
    attribute: _Chain
    imported: str


_Target = _Part | str
"""A statement of the project, or the dotted name of something outside of it."""


@dataclass(eq=False)
class _Module:
    """A module taken apart.

    Args:
        postponed: whether annotations are not evaluated. parts: its statements, but for imports.
        bound: what each of its names is bound to. effects: what it does beside naming things.
        unused: its names that none of its statements uses.
    """

    name: str
    path: Path
    postponed: bool
    parts: list[_Part] = field(default_factory=list)
    bound: dict[str, list[_Part | _Import]] = field(default_factory=dict)
    effects: list[_Part] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name in keys; of a file that was run by its path, without the place, which is in its name."""
        stem = self.path.stem
        return self.name if stem in (self.name.rpartition(".")[2], "__init__") else stem


class Project:
    """Packages whose modules are followed.

    The files are read when the project is made, and taken apart when they are needed: what a long run asks
    for later is about the code as it was at the start, which is the code that runs.

    Args:
        folder: that the packages are in. packages: their names. defined_by: see ``DEFINED_BY``.
        apart: modules that do not count; see ``APART``.
    """

    def __init__(
        self,
        folder: Path,
        packages: Sequence[str],
        defined_by: Mapping[str, str] | None = None,
        apart: Sequence[str] = (),
    ) -> None:
        self._packages, self._defined_by, self._apart = tuple(packages), dict(defined_by or {}), apart
        self._files: dict[str, tuple[Path, bytes]] = {}
        for package in packages:
            for path in sorted((folder / package).rglob("*.py")):
                place = path.relative_to(folder).with_suffix("").parts
                name = ".".join(place[:-1] if place[-1] == "__init__" else place)
                self._files[name] = path, path.read_bytes()
        self._own: dict[str, bool] = {}
        self._modules: dict[str, _Module] = {}
        self._readings: dict[_Part, tuple[str, list[_Target]]] = {}
        self._closures: dict[tuple[str, ...], Closure] = {}

    def closure(self, *roots: Root) -> Closure:
        """Return what the roots depend on, themselves among it.

        Raises:
            InputError: a root that is not defined at the top of a module, or code that cannot be followed.
        """
        names = tuple(sorted({name for root in roots for name in self._names(root)}))
        if names not in self._closures:
            with _no_collection():
                self._closures[names] = self._walk(names)
        return self._closures[names]

    def _names(self, root: object) -> Iterator[str]:
        """Yield "module" or "module:name" of a root, and of the functions that a partial holds."""
        if isinstance(root, functools.partial):
            for held in (root.func, *root.args, *root.keywords.values()):
                if callable(held):
                    yield from self._names(held)
        elif isinstance(root, str):
            module = root.partition(":")[0]
            if not self._has(module):
                raise InputError(f"there is no module {module!r} in {', '.join(self._packages)}")
            yield root
        elif isinstance(root, ModuleType):
            yield root.__name__
        elif isinstance(root, Without):
            for name in self._names(root.of):
                yield f"{name} without {' '.join(root.methods)}"
        else:
            named = root if hasattr(root, "__qualname__") else type(root)
            module, name = named.__module__, named.__qualname__
            if self._has(module) and "<" in name:
                raise InputError(
                    f"{module}.{name} is defined inside a function or expression, so that its code cannot be "
                    "told from what is around it; define it at the top of its module"
                )
            yield f"{module}:{name.partition('.')[0]}" if self._has(module) else module

    def _has(self, name: str) -> bool:
        """Tell whether a module is followed; a user's own is read when it is first asked for."""
        if name in self._files or name.partition(".")[0] in self._packages:
            return name in self._files
        if name not in self._own:
            file = _own_file(name)
            self._own[name] = file is not None
            if file is not None:
                self._files[name] = file, file.read_bytes()
        return self._own[name]

    def _walk(self, roots: Iterable[str]) -> Closure:
        queue: list[_Target] = []
        for root in roots:
            whole, _, without = root.partition(" without ")
            module, _, name = whole.partition(":")
            found = self._resolve(module, (name,) if name else ())
            queue += [_without(each, without.split()) for each in found] if without else found
        reached: dict[_Part, str] = {}
        packages: set[str] = set()
        while queue:
            target = queue.pop()
            if isinstance(target, str):
                packages.add(target.partition(".")[0])
            elif target not in reached:
                reached[target], further = self._reading(target)
                queue += further
                for package in _prefixes(target.module.name):
                    if package in self._files:
                        queue += self._module(package).effects
        lines = sorted(f"{part}\n{text}" for part, text in reached.items())
        digest = hashlib.sha256("\n\n".join(lines).encode()).hexdigest()[:16]
        others = packages - sys.stdlib_module_names - set(_BUILTINS)
        return Closure(digest, tuple(sorted(map(str, reached))), tuple(sorted(others)))

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            self._modules[name] = _taken_apart(name, *self._files[name])
        return self._modules[name]

    def _on_import(self, dotted: Iterable[str]) -> Iterator[_Target]:
        """Yield what happens when modules, or attributes of modules, are imported: for a user's own alone."""
        queue, seen = [*dotted], set[str]()
        while queue:
            for name in _prefixes(queue.pop()):
                if name in seen or not self._has(name) or not self._own.get(name):
                    continue
                seen.add(name)
                module = self._module(name)
                yield from module.effects
                yield from _decorated(module)
                for bound_name, bound in module.bound.items():
                    imports = [each for each in bound if isinstance(each, _Import)]
                    queue += [each.imported for each in imports]
                    if bound_name in module.unused:
                        unused = (each.imported for each in imports if not _is_standard(each.module))
                        yield from (each for each in unused if not any(map(self._has, _prefixes(each))))

    def _resolve(self, module: str, chain: _Chain, trail: tuple[object, ...] = ()) -> Iterator[_Target]:
        """Yield what ``module.chain`` refers to; without a chain, all of the module."""
        module, chain = (self._defined_by[module], ()) if module in self._defined_by else (module, chain)
        if (module, chain) in trail or module in self._apart:
            return
        trail = (*trail, (module, chain))
        if not self._has(module):
            if module.partition(".")[0] in self._packages:
                raise InputError(f"there is no module {module}, which {trail[0]} needs")
            below = ".".join((module, *chain[:1]))
            if chain and not is_installed(module.partition(".")[0]) and (self._has(below) or _folders(below)):
                yield from self._resolve(below, chain[1:], trail)  # in a folder without __init__.py
                return
            yield ".".join((module, *chain))
            return
        known = self._module(module)
        yield from self._on_import([module])
        if not chain:
            yield from known.parts
            bound = [each for name in known.bound for each in known.bound[name]]
        elif chain[0] in known.bound:
            bound = known.bound[chain[0]]
            yield from (each for each in bound if isinstance(each, _Part))
        elif self._has(f"{module}.{chain[0]}"):
            yield from self._resolve(f"{module}.{chain[0]}", chain[1:], trail)
            return
        elif chain[0].startswith("__"):  # such as __doc__, which every module has
            return
        else:
            raise InputError(f"{known.path}: there is no {chain[0]!r}, so what needs it cannot be followed")
        for each in bound:
            if isinstance(each, _Import):
                yield from self._resolve(each.module, each.attribute + chain[1:], trail)

    def _reading(self, part: _Part) -> tuple[str, list[_Target]]:
        """Return what a part says, and what it refers to."""
        if part not in self._readings:
            reader = _Reader(part.module.postponed, _checks(part.module) & part.scope)
            reader.read(part.node)
            if reader.finds_classes:
                raise InputError(
                    f"{part.module.path}, line {part.node.lineno}, {part.name}: {reader.finds_classes[0]} "
                    "finds classes that nothing names, so a result of them would have no key; name them"
                )
            inner: dict[str, list[_Import]] = {}
            for statement in reader.imports:
                for name, bound in _bindings(statement, part.module):
                    inner.setdefault(name, []).append(bound)
            # An import is carried out whether its name is used or not.
            used = {chain[0] for chain in reader.uses}
            chains = {*reader.uses, *((name,) for name in inner if name not in used)}
            refers: dict[str, list[_Target]] = {}
            for chain in sorted(chains):
                found: list[_Target] = []
                for bound in inner.get(chain[0], []):
                    found += self._resolve(bound.module, bound.attribute + chain[1:])
                if chain[0] in part.scope and chain[0] in part.module.bound:
                    found += self._resolve(part.module.name, chain)
                elif chain[0] in _BUILTINS and chain[0] in part.scope:
                    found.append(chain[0])
                found += self._imported(part, reader, chain, found)
                refers[".".join(chain)] = found
            said = [f"{name}={target}" for name, found in refers.items() for target in found]
            targets = [target for found in refers.values() for target in found]
            targets += self._on_import(each.imported for bound in inner.values() for each in bound)
            self._readings[part] = "\n".join(["".join(reader.text), *said]), targets
        return self._readings[part]

    def _imported(
        self, part: _Part, reader: _Reader, chain: _Chain, found: Iterable[_Target]
    ) -> Iterator[_Target]:
        """Yield the modules that are imported by text, where that is a constant; refuse it where not."""
        for target in found:
            by_name = target == "sys.modules" and chain in reader.subscripted
            if not isinstance(target, str) or not (by_name or _begins(target, _REFUSED)):
                continue
            modules = reader.constants.get(chain, [])
            if target not in _IMPORTERS or len(modules) < reader.uses[chain]:
                raise InputError(
                    f"{part.module.path}, line {part.node.lineno}, {part.name}: what {target} brings in is "
                    "not known before it runs, so a result of it would have no key; import it by its name"
                )
            for module in modules:
                yield from self._resolve(module, ())


def _without(target: _Target, methods: Sequence[str]) -> _Target:
    """Return a class without some of its methods; anything else as it is."""
    if isinstance(target, str) or not isinstance(target.node, ast.ClassDef):
        return target
    kept = copy.copy(target.node)
    kept.body = [each for each in kept.body if getattr(each, "name", None) not in methods]
    return _Part(target.module, f"{target.name} without {' '.join(methods)}", kept, target.scope)


class _Reader:
    """What a statement says, and the names it uses with their attributes, such as ("digits", "load")."""

    def __init__(self, postponed: bool, checks: Set[str]) -> None:
        self._postponed, self._checks = postponed, checks
        self.text: list[str] = []
        self.uses: Counter[_Chain] = Counter()
        self.constants: dict[_Chain, list[str]] = {}
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.subscripted: set[_Chain] = set()
        self.finds_classes: list[str] = []

    def read(self, value: object, counts: bool = True) -> None:
        """Take in a node, a list of nodes or a constant; ``counts``: whether its names are looked up."""
        if isinstance(value, list):
            self.text.append("[")
            for each in value:
                self.read(each, counts)
            self.text.append("]")
            return
        if not isinstance(value, ast.AST):
            self.text.append(f"{value!r},")
            return
        kind = type(value)
        if _is_text(value) or _is_call(value, self._checks):
            return
        if isinstance(value, ast.Subscript):
            self.subscripted.add(_chain(value.value))
        named = getattr(value, "attr", getattr(value, "name", None))
        if named in _FINDS_CLASSES:
            self.finds_classes.append(named)
        if kind in (ast.Name, ast.Attribute) and (chain := _chain(value)):
            self.text.append(f"{'.'.join(chain)},")
            if counts:
                self.uses[chain] += 1
            return
        if isinstance(value, ast.Import | ast.ImportFrom):
            self.imports.append(value)
        if isinstance(value, ast.Call) and value.args and (called := _chain(value.func)):
            first = value.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value[:1] != ".":
                self.constants.setdefault(called, []).append(first.value)
        self.text.append(f"{kind.__name__}(")
        for name in value._fields:
            content = getattr(value, name, None)
            if content is not None and content != [] and name not in ("ctx", "kind", "type_comment"):
                self.text.append(f"{name}=")
                self.read(content, counts and not (self._postponed and name in ("annotation", "returns")))
        self.text.append(")")


def _chain(node: ast.AST) -> _Chain:
    """Return the name and attributes of ``name.attribute.attribute``; empty for any other expression."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()


def _is_text(node: ast.AST) -> bool:
    """Tell whether a statement is a text that nobody uses: a docstring, of a constant as well."""
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and type(node.value.value) is str
    )


def _is_call(node: ast.AST, names: Set[str]) -> bool:
    """Tell whether a statement is a call of a function of these names and nothing else."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id in names
    )


def _checks(module: _Module) -> set[str]:
    """Return the names that functions of ``CHECKS`` have in a module, and nothing else has."""
    return {
        name
        for name, bound in module.bound.items()
        if all(isinstance(each, _Import) and each.imported in CHECKS for each in bound)
    }


def _prefixes(dotted: str) -> Iterator[str]:
    """Yield a, a.b and a.b.c of a.b.c."""
    return itertools.accumulate(dotted.split("."), "{}.{}".format)


def _begins(name: str, beginnings: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in beginnings)


def _taken_apart(name: str, path: Path, source: bytes) -> _Module:
    tree = ast.parse(source, str(path))
    table = symtable.symtable(source.decode(), str(path), "exec")
    scopes = {(each.get_name(), each.get_lineno()): _globals(each) for each in table.get_children()}
    module = _Module(name, path, any(_postpones(node) for node in tree.body))
    everything = frozenset(symbol.get_name() for symbol in table.get_symbols()) | set(_BUILTINS)
    for node in _run_on_import(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for bound_name, bound in _bindings(node, module):
                module.bound.setdefault(bound_name, []).append(bound)
            continue
        if _is_call(node, _checks(module)):
            continue
        names, scope = _names_bound(node), everything
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = scopes[node.name, node.lineno] | _names_around(node)
        first = names[0] if names else "on import"
        count = sum(part.name.partition(" #")[0] == first for part in module.parts)
        part = _Part(module, f"{first} #{count + 1}" if count else first, node, scope)
        module.parts.append(part)
        for bound_name in names:
            module.bound.setdefault(bound_name, []).append(part)
        if not names or isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.Match):
            module.effects.append(part)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    for bound_name, bound in _bindings(inner, module):
                        module.bound.setdefault(bound_name, []).append(bound)
    used = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    module.unused = [bound_name for bound_name in module.bound if bound_name not in used]
    return module


def _decorated(module: _Module) -> Iterator[_Part]:
    """Yield the definitions whose decorators have names of others than the standard library in them."""
    for part in module.parts:
        for decorator in getattr(part.node, "decorator_list", []):
            names = {each.id for each in ast.walk(decorator) if isinstance(each, ast.Name)}
            bound = [each for name in names for each in module.bound.get(name, [])]
            if not all(isinstance(each, _Import) and _is_standard(each.module) for each in bound):
                yield part
                break


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _globals(table: symtable.SymbolTable) -> frozenset[str]:
    """Return the names that a function or class, and what is defined in it, take from the module."""
    own = frozenset(symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
    return own.union(*(_globals(child) for child in table.get_children()))


def _names_around(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """Return the names in decorators, defaults and bases, which are the module's."""
    around: list[ast.AST | None] = [*node.decorator_list]
    around += [*node.bases, *node.keywords] if isinstance(node, ast.ClassDef) else [node.args, node.returns]
    walked = itertools.chain.from_iterable(ast.walk(each) for each in around if each is not None)
    return {each.id for each in walked if isinstance(each, ast.Name)}


def _postpones(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _run_on_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that an import runs, but for texts."""
    for node in body:
        if isinstance(node, ast.If) and _is_never_true(node.test):
            yield from _run_on_import(node.orelse)
        elif not _is_text(node) and not _postpones(node):
            yield node


def _is_never_true(test: ast.expr) -> bool:
    if isinstance(test, ast.Compare):
        return ast.unparse(test) == "__name__ == '__main__'"
    return _chain(test)[-1:] == ("TYPE_CHECKING",)


def _names_bound(node: ast.stmt) -> list[str]:
    """Return the names that a statement binds in its module, without those of comprehensions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = [each.target for each in ast.walk(node) if isinstance(each, ast.comprehension)]
    theirs = {id(each) for target in targets for each in ast.walk(target)}
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and not _is_read(each))
    names = {each.id for each in stored if id(each) not in theirs}
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        names |= {each.name for each in ast.walk(node) if isinstance(each, defined)}
    return sorted(names)


def _is_read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _bindings(node: ast.Import | ast.ImportFrom, module: _Module) -> Iterator[tuple[str, _Import]]:
    """Yield the names that an import binds, and to what."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, _Import(alias.name if alias.asname else top, (), alias.name)
        return
    source = node.module or ""
    if node.level:
        package = module.name.split(".")
        package = package[: len(package) - node.level + (module.path.name == "__init__.py")]
        source = ".".join([*package, *([source] if source else [])])
    for alias in node.names:
        if alias.name == "*":
            raise InputError(
                f"{module.path}, line {node.lineno}: import * cannot be followed; name the names"
            )
        yield alias.asname or alias.name, _Import(source, (alias.name,), f"{source}.{alias.name}")


def is_library(name: str, file: Path) -> bool:
    """Tell whether a module is an installed package's or the standard library's."""
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(installed) or _is_standard(name)


@functools.cache
def is_installed(package: str) -> bool:
    """Tell whether a package is the standard library's or has a version, wherever its files are."""
    try:
        return _is_standard(package) or bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _own_file(name: str) -> Path | None:
    """Return the Python file of a user's own module, loaded or not; None where a library has it."""
    if is_installed(name.partition(".")[0]):
        return None
    place = getattr(sys.modules.get(name), "__file__", None) or _place(name)
    file = Path(place or "")
    return file if file.suffix == ".py" and not is_library(name, file) else None


def _place(name: str) -> Path | None:
    """Return the file that a module would be imported from; nothing is run for it."""
    package, _, last = name.rpartition(".")
    for folder in _folders(package):
        for file in (folder / last / "__init__.py", folder / f"{last}.py"):
            if file.is_file():
                return file
    return None


def _folders(package: str) -> list[Path]:
    """Return the folders that a package's modules lie in: several where none has an ``__init__.py``."""
    if not package:
        return [Path(entry) for entry in sys.path]
    around, _, last = package.rpartition(".")
    folders = [folder / last for folder in _folders(around) if (folder / last).is_dir()]
    return [folder for folder in folders if (folder / "__init__.py").is_file()][:1] or folders


@contextmanager
def _no_collection() -> Iterator[None]:
    """Put off the collection of garbage, which takes half of the time of taking modules apart."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@functools.cache
def project() -> Project:
    """Return the packages of this repository."""
    return Project(REPOSITORY, PACKAGES, DEFINED_BY, APART)
