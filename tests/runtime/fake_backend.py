"""Accelerators that die on demand: a backend in Python, and the delegate of fake_delegate.c built here.

Load it by its path: tests/ is no package.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from edgeferry_runtime.backend import Backend

SOURCE = Path(__file__).resolve().parent / "fake_delegate.c"


def failing_backend(real: Backend, fail_after: int, recover: Callable[[], bool] | None = None) -> Backend:
    """``real`` with interpreters that fail as a lost device does.

    Args:
        real: what runs the models until then.
        fail_after: invokes that work, counted over all interpreters of this backend.
        recover: asked whenever something is tried after that; True brings everything back for good.
    """
    done = 0
    lost = False

    def check() -> None:
        nonlocal lost, done
        if lost and recover is not None and recover():
            lost, done = False, -sys.maxsize
        if lost:
            raise RuntimeError("fake accelerator: device lost")

    class Interpreter(real.module.Interpreter):
        def __init__(self, *arguments, **options):
            check()
            super().__init__(*arguments, **options)

        def invoke(self):
            nonlocal lost, done
            lost = lost or done >= fail_after
            check()
            done += 1
            super().invoke()

    module = types.ModuleType("fake_interpreter")
    vars(module).update({k: v for k, v in vars(real.module).items() if not k.startswith("__")})
    module.Interpreter = Interpreter
    return real._replace(module=module)


def build_delegate(folder: Path) -> str:
    """Compile fake_delegate.c; its options are in its first comment.

    Skips the test where no shared library for this Python can be built.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32" or sys.maxsize < 2**32:
        pytest.skip("a C compiler and a 64-bit POSIX system are needed to build the fake delegate")
    library = folder / "libfake_delegate.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-lm"], check=True)
    return str(library)
