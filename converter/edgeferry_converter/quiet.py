"""Silence for libraries that write to standard error past Python; a console that still reaches the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["quiet"]


@contextmanager
def quiet(verbose: bool) -> Iterator[Console]:
    """Send file descriptor 2 to a scratch file while the body runs.

    TensorFlow and the interpreters log from C++ on their first use, dozens of lines that mean nothing to a
    person who converts a model.  When the body fails with an error nobody expected, they are shown after all.

    Args:
        verbose: change nothing.

    Yields:
        A console on the real standard error.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from edgeferry_runtime.errors import EdgeferryError
    from rich.console import Console

    if verbose:
        yield Console(stderr=True)
        return
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # no standard error at all, as under some services
        yield Console(stderr=True)
        return
    with tempfile.TemporaryFile() as scratch, os.fdopen(real, "w", closefd=True) as terminal:
        os.dup2(scratch.fileno(), 2)
        try:
            yield Console(file=terminal)
        except EdgeferryError:
            raise
        except Exception:
            scratch.seek(0)
            terminal.write(scratch.read().decode("utf-8", "replace"))
            raise
        finally:
            sys.stderr.flush()
            terminal.flush()
            os.dup2(real, 2)
