"""What a user may decide about a model, in run.json and on the command line: part of the contract.

It knows neither numpy nor the interpreters: the workstation reads it, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry_runtime.fields import Fields

__all__ = ["BACKENDS", "LINE", "ModelConfig"]

BACKENDS = ("ai-edge-litert", "tflite-runtime")
LINE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\\Z")  # also no half of a character, which no file can hold


@dataclass(frozen=True)
class ModelConfig:
    """Choices about the model, as the command line has them; None leaves them to bundle and board.

    Attributes:
        variant, backend: by name.
        threads: of the interpreter, or "auto": measured once.
        delegate: "xnnpack", "edgetpu[:usb:N]" or "PATH.so[?key=value&...]".
        xnnpack: whether the interpreter may use XNNPACK.
        require_delegate: the least share of operations that must be delegated, 0 to 1.
        threshold: lowest score to report, 0 to 1.
        top_k: so many classes or boxes at most.
        any_arch: also run what was made for another architecture.
    """

    variant: str | None = None
    backend: str | None = None
    threads: int | str | None = None
    delegate: str | None = None
    xnnpack: bool = True
    require_delegate: float | None = None
    threshold: float | None = None
    top_k: int | None = None
    any_arch: bool = False

    @classmethod
    def read(cls, fields: Fields) -> ModelConfig:
        """Read it, noting every problem in ``fields``."""
        return cls(
            variant=fields.optional("variant", lambda key: _line(fields, key)),
            backend=fields.optional("backend", lambda key: fields.choice(key, BACKENDS)),
            threads=fields.optional("threads", lambda key: _threads(fields, key)),
            delegate=fields.optional("delegate", lambda key: _line(fields, key)),
            xnnpack=fields.boolean("xnnpack", True),
            require_delegate=fields.optional("require_delegate", fields.share),
            threshold=fields.optional("threshold", fields.share),
            top_k=fields.optional("top_k", lambda key: fields.integer(key, minimum=1)),
            any_arch=fields.boolean("any_arch", False),
        )


def _threads(fields: Fields, key: str) -> int | str:
    if isinstance(fields._value[key], str):
        return fields.choice(key, ("auto",))
    return fields.integer(key, minimum=1)


def _line(fields: Fields, key: str) -> str:
    return fields.text(key, pattern=LINE, means="one line, and not empty")
