"""`edgeferry inspect --profile`: what a model takes on this machine, measured by the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import OptionError

__all__ = ["check_files", "with_profile"]


def check_files(files: Sequence[Path], html: Path | None) -> None:
    """Refuse what cannot be profiled, before anything is measured.

    Raises:
        OptionError: a file is neither a .tflite nor a bundle, or one page is asked for of several files.
    """
    for path in files:
        if not _is_bundle(path) and path.suffix != ".tflite":
            raise OptionError(
                f"{path}: only a .tflite file or a bundle can be profiled",
                "Convert it first: what takes time on a board is the converted model.",
            )
    if html is not None and len(files) > 1:
        raise OptionError(f"--html is one page, {len(files)} files are named", "Inspect them one by one.")


def with_profile(path: Path, facts: dict[str, Any], text: str, html: Path | None) -> tuple[dict[str, Any], str]:
    """What is known of a file, and its profile: ``facts["profile"]``, and tables below the text.

    Raises:
        BackendError: no interpreter here can run it.
        UsageError: the page cannot be written.
    """
    from edgeferry_runtime.opening import Choices
    from edgeferry_runtime.profile_text import to_text
    from edgeferry_runtime.profiling import profile_bundle, profile_file, write_page

    choices = Choices(str(path), any_arch=True)
    report = profile_bundle(choices) if _is_bundle(path) else profile_file(str(path))
    if html is not None:
        write_page(report, str(html))
    return dict(facts, profile=report), f"{text}\n\n{to_text(report)}"


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".ferry" or (path / "manifest.json").is_file()
