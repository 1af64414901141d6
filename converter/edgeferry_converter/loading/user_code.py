"""Code of the user's own: the builder of an architecture, and the module with custom layers."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.loading.source import first_line

__all__ = ["build_model", "custom_objects"]


def build_model(builder: str) -> Any:
    """The keras.Model that ``module:function`` returns; the current folder is searched first.

    Raises:
        OptionError: it is not written so, or there is no such module or function.
        ModelError: it raises, or returns something else.
    """
    import keras

    module_name, colon, name = builder.partition(":")
    if not (colon and module_name.strip() and name.isidentifier()):
        raise OptionError(f"--builder {builder!r}: is not module:function", "Write --builder mymodel:build, say.")
    with _searching_here():
        module = _import(module_name, "--builder")
        function = getattr(module, name, None)
        if not callable(function):
            raise OptionError(
                f"--builder {builder}: {module.__file__} has no function {name!r}{_candidates(module)}",
                "Name the function that returns the model.",
            )
        try:
            model = function()
        except Exception as error:  # it is the user's code
            place = _place(error, module)
            raise ModelError(
                f"--builder {builder}: raises {type(error).__name__}: {first_line(error)} ({place})",
                "It is called without arguments and returns a keras.Model.",
            ) from error
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ModelError(
            f"--builder {builder}: returns {kind}, no keras.Model of Keras {keras.__version__}",
            "It is called without arguments and returns a keras.Model.",
        )
    if not model.built:
        raise ModelError(
            f"--builder {builder}: returns a model that is not built, so it has no variables to restore",
            "Begin it with keras.Input(shape), or call model.build(shape) before returning it.",
        )
    return model


def custom_objects(module_name: str | None) -> dict[str, Any]:
    """Classes and functions that a module defines, by name, as Keras takes them for ``custom_objects``.

    A dict called ``custom_objects`` in the module is taken as well, and wins.

    Raises:
        OptionError: there is no such module, or it raises.
    """
    if module_name is None:
        return {}
    with _searching_here():
        module = _import(module_name, "--custom-objects")
    found = {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    }
    declared = getattr(module, "custom_objects", None)
    return {**found, **declared} if isinstance(declared, dict) else found


@contextmanager
def _searching_here() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _import(name: str, option: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise OptionError(f"{option} {name}: needs the module {error.name!r}", "Install it.") from error
        raise OptionError(
            f"{option} {name}: there is no module {error.name!r} in {Path.cwd()} or among the installed ones",
            "Run edgeferry in the folder that holds it, or put that folder on PYTHONPATH.",
        ) from None
    except Exception as error:  # a module's top level is the user's code
        raise OptionError(
            f"{option} {name}: raises {type(error).__name__}: {first_line(error)} ({_place(error, None)})",
            "Check that `python -c 'import ...'` works in this environment.",
        ) from error


def _place(error: BaseException, module: ModuleType | None) -> str:
    """File and line: the innermost one in the user's module, else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    own = [frame for frame in frames if module is not None and frame.filename == module.__file__]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _candidates(module: ModuleType) -> str:
    names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    return f"; it has {', '.join(names[:5])}" if names else ""
