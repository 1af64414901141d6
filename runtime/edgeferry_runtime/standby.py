"""What runs when an accelerator fails: the bundle's next variant at once, the accelerator when it is back."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from edgeferry_runtime.errors import BackendError, EdgeferryError
from edgeferry_runtime.model import Model
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import Frame

__all__ = ["Standby"]

_LOG = logging.getLogger("edgeferry")


class Standby(Roster):
    """Replaces a model whose accelerator failed, and brings it back.

    Args:
        open_fallback: opens what runs without the accelerator.
        open_preferred: opens what runs with it.
        probe: why the accelerator cannot be used now, None when it can; asked in a thread, every ``retry_s``.
            It must survive an accelerator that kills its process, so it asks a child.
        retry_s: seconds between two probes.
    """

    def __init__(
        self,
        open_fallback: Callable[[], Model],
        open_preferred: Callable[[], Model],
        probe: Callable[[], str | None],
        retry_s: float = 10.0,
    ) -> None:
        self._open_fallback = open_fallback
        self._open_preferred = open_preferred
        self._probe = probe
        self._retry_s = retry_s
        self._now: Model | None = None  # None: whatever runs
        self._opened: list[Model] = []
        self._fallback: Model | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, reason: str) -> Model:
        """What to run because the accelerator cannot be used from the start; it is watched for from now on."""
        self._now = self._fallback = self._keep(self._open_fallback())
        _LOG.error("%s; %s runs until it can be used", reason, self._fallback.variant.name)
        self._start_watching()
        return self._fallback

    def replace(self, failed: Model, error: BackendError) -> Model:
        """What to run instead of a model that failed.

        Raises:
            BackendError: the model that failed is already the last one.
        """
        if failed is self._fallback:
            raise error
        began = time.monotonic()
        if self._fallback is None:
            self._fallback = self._keep(self._open_fallback())
        _LOG.error(
            "%s with %s failed: %s; %s runs instead, after %.0f ms",
            failed.variant.name,
            failed.delegate or failed.backend_name,
            error.message,
            self._fallback.variant.name,
            (time.monotonic() - began) * 1000,
        )
        if failed in self._opened:  # it had come back and failed again
            self._opened.remove(failed)
            failed.close()
        self._now = self._fallback
        self._start_watching()
        return self._fallback

    def choose(self, running: Model, frame: Frame) -> Model:
        """The accelerator's model while it works, what stands by while it does not."""
        return self._now or running

    def close(self) -> None:
        """Stop watching and close what was opened."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(1.0)
        for model in self._opened:
            model.close()
        self._opened = []

    def _start_watching(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="edgeferry-standby", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(self._retry_s):
            try:
                if self._probe() is None:
                    model = self._keep(self._open_preferred())
                    model.warm_up()
                    _LOG.warning("%s is back; it runs again", model.delegate or model.variant.name)
                    self._now = model
                    return
            except EdgeferryError as error:
                _LOG.debug("the accelerator is not back: %s", error.message)

    def _keep(self, model: Model) -> Model:
        self._opened.append(model)
        return model
