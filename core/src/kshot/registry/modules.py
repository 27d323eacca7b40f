"""Build networks that are named by an import path: ``encoder="mypackage.nets:resnet12"``.

Such a name works in code, on the command line and in a recipe, and a run records it, so that the run can be rebuilt.
The path names a ``torch.nn.Module``, a subclass of it, or a function whose annotation says that it returns one;
anything else is refused before it is called. A parameter called ``spec`` is given the spec of the tasks.

A run folder may come from somebody else. While one is rebuilt (``importing(..., run=...)``), a path is imported only
from an installed package or from the folder that the user gives, and a warning says so before it is imported.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import inspect
import json
import re
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from attrs import frozen

from kshot.errors import KshotError, OptionError, RunError
from kshot.registry.discovery import module_spec
from kshot.registry.options import validate

if TYPE_CHECKING:
    from torch import nn

    from kshot.spec import TaskSpec

_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


@frozen
class _Rebuilding:
    """Store which run is being rebuilt, and the folder that its user has given for imports."""

    run: Path
    import_from: Path | None


_REBUILDING: ContextVar[_Rebuilding | None] = ContextVar("kshot_rebuilding", default=None)


def is_path(text: object) -> bool:
    """Return whether ``text`` has the form of an import path, ``module:attribute``."""
    return isinstance(text, str) and _PATH.fullmatch(text) is not None


@contextlib.contextmanager
def importing(import_from: str | Path | None, *, run: Path | None = None) -> Iterator[None]:
    """Import networks from the folder ``import_from`` too, inside the block.

    Args:
        import_from: a folder that is put at the end of ``sys.path``, or None.
        run: the run folder that is being rebuilt: then only installed packages and ``import_from`` are allowed.

    Raises:
        OptionError: ``import_from`` is not a folder.
    """
    folder = None if import_from is None else Path(import_from).absolute()
    if folder is not None and not folder.is_dir():
        raise OptionError(f"import_from: got {import_from}, expected an existing folder with the modules to import")
    added = folder is not None and str(folder) not in sys.path
    if added:
        sys.path.append(str(folder))
    token = _REBUILDING.set(None if run is None else _Rebuilding(run.absolute(), folder))
    try:
        yield
    except KshotError as error:
        if run is not None and str(run) not in " ".join([str(error), *getattr(error, "__notes__", ())]):
            error.add_note(f"in the run {run}")
        raise
    finally:
        _REBUILDING.reset(token)
        if added:
            sys.path.remove(str(folder))


def rebuilt_run() -> Path | None:
    """Return the run folder that is being rebuilt (``importing(..., run=...)``), or None."""
    rebuilding = _REBUILDING.get()
    return None if rebuilding is None else rebuilding.run


def build_module(path: str, options: Mapping[str, Any], spec: TaskSpec | None, *, who: str) -> nn.Module:
    """Build the network that an import path names.

    Args:
        path: ``module:attribute``. A module object is copied, so that two learners share no parameters.
        options: keyword arguments of the class or function, checked by its annotations.
        spec: of the tasks, for a parameter called ``spec``.
        who: whose option this is, for messages: ``option encoder of learner 'protonet' (kshot-protonet 0.1.0)``.

    Raises:
        OptionError: the path can't be imported or is no network, or an option is wrong.
        RunError: a run is being rebuilt, and the path lies elsewhere than in installed packages or ``import_from``.
    """
    from torch import nn

    if (rebuilding := _REBUILDING.get()) is not None:
        _allow(path, options, who, rebuilding)
    target = _import(path, who)
    if isinstance(target, nn.Module):
        if options:
            raise OptionError(f"{who}: {path} is a module object and takes no options; got {', '.join(options)}")
        return copy.deepcopy(target)
    if not _makes_module(target):
        raise OptionError(
            f"{who}: got {path}, which is {_described(target)}; expected a torch.nn.Module, a subclass of it, or a "
            "function whose return annotation is one (def make(spec: kshot.TaskSpec) -> nn.Module)"
        )
    takes_spec = "spec" in inspect.signature(target).parameters
    if "spec" in options:
        raise OptionError(f"{who}: {path}: got the option 'spec', which kshot itself gives; leave it out")
    values = validate(target, options, who=f"{who}: {path}", missing_ok=("spec",))
    try:
        module = target(**({"spec": spec} if takes_spec else {}), **values)
    except Exception as error:
        error.add_note(f"while building {path} for {who}")
        raise
    if not isinstance(module, nn.Module):
        raise OptionError(f"{who}: {path} returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def _import(path: str, who: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"{who}: got {path}, which can't be imported ({error}); expected MODULE:NAME of an installed package, or "
            "give the folder that has the module (import_from, --import-from=FOLDER)"
        ) from error
    return target


def _makes_module(target: Any) -> bool:
    """Return whether a class is a network, or a function is annotated to return one."""
    from torch import nn

    if inspect.isclass(target):
        return issubclass(target, nn.Module)
    if not inspect.isfunction(target):
        return False
    returned = target.__annotations__.get("return")
    if isinstance(returned, str):
        try:
            returned = typing.get_type_hints(target).get("return")
        except Exception:  # a name that only type checkers import
            return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _described(target: Any) -> str:
    if inspect.isfunction(target):
        return "a function without such an annotation"
    return f"the class {target.__qualname__}" if inspect.isclass(target) else f"a {type(target).__name__} object"


def _allow(path: str, options: Mapping[str, Any], who: str, rebuilding: _Rebuilding) -> None:
    """Warn that a path is about to be imported for a run folder; raise RunError if it must not be."""
    module = path.partition(":")[0]
    spec = module_spec(module)  # finds it without importing anything
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    if origin is None or not _may_import(origin, rebuilding):
        place = "is not installed" if origin is None else f"lies in {origin}"
        raise RunError(
            f"{rebuilding.run}: {who} is {path}, and {module} {place}; expected a module of an installed package, or "
            "of a folder that you trust and name (import_from, --import-from=FOLDER)"
        )
    called = f"; it is called with {dict(options)}" if options else ""
    warnings.warn(
        f"importing {path} from {origin}, as {who} of the run {rebuilding.run} names it{called}", stacklevel=4
    )


def _may_import(origin: Path, rebuilding: _Rebuilding) -> bool:
    origin = origin.resolve()
    if rebuilding.import_from is not None and origin.is_relative_to(rebuilding.import_from.resolve()):
        return True
    if origin.is_relative_to(rebuilding.run.resolve()):
        return False
    return any(origin.is_relative_to(root) for root in _installed_roots())


def _installed_roots() -> set[Path]:
    """Return the folders of ``sys.path`` with installed distributions, and the source folders of editable installs.

    The working folder is not one of them, even if a distribution lies in it.
    """
    roots = set()
    for distribution in importlib.metadata.distributions():
        roots.add(Path(str(distribution.locate_file(""))).resolve())
        try:
            direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        except (OSError, ValueError):
            continue
        if direct.get("dir_info", {}).get("editable"):
            roots.add(Path(unquote(urlparse(str(direct.get("url", ""))).path)).resolve())
    return roots - {Path.cwd().resolve()}


def names_of(annotation: Any) -> frozenset[str]:
    """Return the names among the values that a type annotation allows, such as ``conv4``."""
    members = typing.get_args(annotation) or (annotation,)
    return frozenset(name for m in members for name in typing.get_args(m) if isinstance(name, str)) | frozenset(
        member for member in members if isinstance(member, str)
    )


def takes_module(annotation: Any) -> bool:
    """Return whether an option with this type annotation takes a network: ``nn.Module`` or a union with it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    members = typing.get_args(annotation) or (annotation,)
    return any(inspect.isclass(member) and issubclass(member, torch.nn.Module) for member in members)
