"""Hot swap: a new version of the model is checked and loaded beside the one that runs, then takes over at a frame.

    asked for -> checking (goldens, in a child process) -> loading (opened and warmed up in a thread of its own)
              -> ready (the next frame is its first) -> swapped (it has answered; the old one is let go)

Whatever goes wrong on the way leaves the old version running.  Until the new one has given an answer the old one
stays loaded, and runs again where the new one fails on its first frame.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Callable, Mapping, Optional, Tuple

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.errors import BackendError, EdgeferryError, FrameError, UsageError
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.results import Result
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.swap import Swap

__all__ = ["Opened", "Versions", "require_sound"]

_LOG = logging.getLogger("edgeferry")
Opened = Tuple[Model, Optional[Roster]]  # a model, and what runs in its place when it fails
_AGAIN = "Look at the new version with: edgeferry-run check --bundle BUNDLE"
_LONGEST_WAIT_S = 600.0


class _Version:
    """A version that was opened: its model, whichever its own roster takes for it now, and that roster."""

    def __init__(self, path: str, model: Model, roster: Roster | None) -> None:
        self.path = path
        self.first = self.model = model
        self._roster = roster or Roster()

    def choose(self, frame: Frame) -> Model:
        before = self.model
        chosen = self._roster.choose(before, frame)
        if chosen is not before and self.model is before:  # else it was replaced meanwhile, in another thread
            self.model = chosen
        return self.model

    def replace(self, failed: Model, error: BackendError) -> Model:
        self.model = self._roster.replace(failed, error)
        return self.model

    def close(self) -> None:
        self._roster.close()
        self.model.close()
        self.first.close()


class Versions(Roster, Observer):
    """Runs one version of a bundle and changes it when told to.

    Args:
        path: the bundle it was started with; may be a link that comes to lead elsewhere.
        model: what runs at first; closed when it is retired, or with this.
        open_version: opens a version by its path, as the first one was opened.
        check: replays a bundle's goldens in a child process and gives ``check.check_in_child``'s report.
        roster: what stands by for the first model.
        open_variant: opens a variant of a version by path and name; None where nobody asks for one.
        deadline_s: how long checking and loading may take.
        clock: monotonic seconds.
    """

    name = "version"

    def __init__(
        self,
        path: str,
        model: Model,
        open_version: Callable[[str], Opened],
        check: Callable[[str], Mapping[str, Any]],
        roster: Roster | None = None,
        open_variant: Callable[[str, str], Opened] | None = None,
        deadline_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._open_version, self._open_variant = open_version, open_variant
        self._variant: str | None = None  # that was asked for
        self._check = check
        self._deadline_s = deadline_s
        self._clock = clock
        self._now = _Version(os.path.realpath(path), model, roster)
        self._before: _Version | None = None  # while the new one has given no answer
        self._ready: tuple[Swap, _Version] | None = None
        self._swap: Swap | None = None
        self._lock = threading.Lock()  # held for microseconds
        self._closed = False
        self._last_done_ns = 0
        self._swaps = self._refusals = 0
        self._gap_ms: float | None = None

    # In the loop's threads.

    def choose(self, running: Model, frame: Frame) -> Model:
        """The new version as soon as it is ready, else what runs; ``running`` may be somebody else's choice."""
        if self._ready is not None:
            with self._lock:
                if self._ready is not None:
                    self._before, self._now = self._now, self._ready[1]
                    self._ready = None
        return self._now.choose(frame)

    def replace(self, failed: Model, error: BackendError) -> Model:
        """The old version where the new one has not answered a frame yet, else what the version itself has.

        Raises:
            BackendError: there is nothing else.
        """
        old = self.invalid(failed, error)
        if old is not None:
            return old
        now, before = self._now, self._before
        # Frames prepared for the old version may still be under way.
        return (now if before is None or failed is now.model else before).replace(failed, error)

    def invalid(self, model: Model, error: BackendError) -> Model | None:
        """The old version, to run a frame again whose first answer from a new version is none; else None."""
        with self._lock:
            now, before, swap = self._now, self._before, self._swap
            if before is None or model is not now.model or swap is None or swap.over:
                return None
            self._now, self._before = before, None
        self._refuse("it failed on its first frame: {}".format(error.message), swap)
        return before.model

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        done = result.captured_ns + int(result.age_us * 1000)
        last, self._last_done_ns = self._last_done_ns, done
        if self._before is None or model is not self._now.model:
            return
        swap = self._swap
        if swap is not None and not swap.over:
            swap.gap_ms = self._gap_ms = round((done - last) / 1e6, 3) if last else None
            self._swaps += 1
            swap.end("swapped")

    # From anywhere.

    @property
    def running(self) -> Model:
        """The model that is chosen now."""
        return self._now.model

    @property
    def running_path(self) -> str:
        """The bundle it is from, resolved."""
        return self._now.path

    def reload(self, path: str | None = None) -> Swap:
        """Begin to change to another version; its goldens are replayed and it is loaded in the background.

        Args:
            path: a ``.ferry`` file or a folder; None takes the one this was started with, wherever it leads now.

        Raises:
            BundleError: there is no bundle.
            UsageError: this very version runs, or another one is being loaded.
            FrameError: it takes tensors, not frames.
        """
        resolved = os.path.realpath(path or self.path)
        with Bundle.open(resolved) as bundle:
            manifest = bundle.manifest
        identity = "{}-{}".format(manifest.name, manifest.version[:12])
        if manifest.version == self.running.bundle.manifest.version:
            raise UsageError("{} already runs".format(identity))
        if manifest.preprocessing is None:
            raise FrameError("{} takes tensors, not frames".format(identity), "Convert it with --preprocess.")
        has = [variant.name for variant in manifest.variants]
        return self._begin(resolved, identity, self._variant if self._variant in has else None, checked=False)

    def use_variant(self, name: str | None) -> Swap | None:
        """Begin to change to another variant of the version that runs; its bundle was checked before.

        Args:
            name: of the variant; None for the one a version begins with.

        Returns:
            None where it is the one that was asked for last.

        Raises:
            UsageError: variants cannot be opened here, or another change is under way.
        """
        if name == self._variant:
            return None
        if self._open_variant is None:
            raise UsageError("variants cannot be changed here")
        identity = self.running.identity + (" " + name if name else "")
        swap = self._begin(self.running_path, identity, name, checked=True)
        self._variant = name
        return swap

    def _begin(self, path: str, identity: str, variant: str | None, checked: bool) -> Swap:
        with self._lock:
            if self._closed:
                raise UsageError("the loop is ending")
            if self._swap is not None and (not self._swap.over or self._before is not None):
                raise UsageError("{} is still being loaded".format(self._swap.identity), "Wait until it is over.")
            swap = self._swap = Swap(path, identity, variant, self._clock())
        threading.Thread(target=self._change, args=(swap, checked), name="edgeferry-swap", daemon=True).start()
        return swap

    def tick(self) -> None:
        """Give up on a version that does not come to be loaded."""
        swap = self._swap
        late = swap is not None and self._clock() - swap.began > self._deadline_s
        if swap is not None and late and swap.stage in ("checking", "loading"):
            self._refuse("it was not loaded within {:g} s".format(self._deadline_s), swap)

    def state(self) -> dict[str, Any]:
        now, swap = self._now, self._swap
        return {
            "bundle": now.model.identity,
            "path": now.path,
            "swap": swap.to_json() if swap is not None else None,
            "swaps": self._swaps,
            "refused": self._refusals,
            "gap_ms": self._gap_ms,
        }

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What may be asked for: "reload", with "bundle" (a path) and "wait_s" (how long to wait for the end)."""
        return {"reload": self._reload_command}

    def _reload_command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path, wait_s = request.get("bundle"), request.get("wait_s", 0)
        if not isinstance(path, (str, type(None))) or not isinstance(wait_s, (int, float)):
            raise UsageError("bundle must be a path, wait_s a number")
        swap = self.reload(path)
        swap.wait(min(max(0.0, wait_s), _LONGEST_WAIT_S))
        if swap.stage == "refused":
            raise EdgeferryError(
                "{} was refused: {}; {} goes on".format(swap.identity, swap.why, self.running.identity), _AGAIN
            )
        return {"swap": swap.to_json(), "running": self.running.identity}

    def close(self) -> None:
        """Give a change under way up and close what is loaded; harmless twice."""
        with self._lock:
            self._closed = True
            versions = [self._now, self._before, self._ready[1] if self._ready is not None else None]
            self._before = self._ready = None
        if self._swap is not None:
            self._swap.end("refused", "the loop ended")
        for version in versions:
            if version is not None:
                version.close()

    # In the thread of a swap.

    def _change(self, swap: Swap, checked: bool) -> None:
        try:
            if not checked:
                require_sound(self._check(swap.path))
            if swap.over:
                return
            swap.stage = "loading"
            version = self._load(swap)
        except EdgeferryError as error:
            self._refuse(error.message, swap)
            return
        except Exception as error:  # whatever it is, the old version goes on
            self._refuse(repr(error), swap)
            return
        with self._lock:
            if not swap.over:
                swap.stage = "ready"
                self._ready = (swap, version)
        swap.wait()
        self._retire(swap, version)

    def _load(self, swap: Swap) -> _Version:
        if swap.variant is not None and self._open_variant is not None:
            model, roster = self._open_variant(swap.path, swap.variant)
        else:
            model, roster = self._open_version(swap.path)
        version = _Version(swap.path, model, roster)
        try:
            if model.preprocessor is None:
                raise FrameError("{} takes tensors, not frames".format(model.identity))
            model.warm_up()
        except BaseException:
            version.close()
            raise
        return version

    def _retire(self, swap: Swap, version: _Version) -> None:
        """Let go of what does not run any more: the old version, or the new one where it was refused."""
        with self._lock:
            if swap.stage != "swapped":
                retired: _Version | None = version if version is not self._now else None
            else:
                retired, self._before = self._before, None
        if swap.stage == "swapped":
            gap = "" if swap.gap_ms is None else ", {:.1f} ms after the last result".format(swap.gap_ms)
            old = retired.model.identity if retired is not None else "another version"
            _LOG.warning("%s runs in the place of %s%s", swap.identity, old, gap)
        if retired is not None:
            retired.close()

    def _refuse(self, why: str, swap: Swap) -> None:
        if swap.over:
            return
        self._refusals += 1
        _LOG.error("%s was refused: %s; %s goes on", swap.identity, why, self.running.identity)
        swap.end("refused", why)


def require_sound(report: Mapping[str, Any]) -> None:
    """Go on only with a self-check that succeeded.

    Raises:
        BackendError: it did not.
    """
    if report.get("ok") is not True:
        raise BackendError(str(report.get("error") or "its self-check failed"), str(report.get("remedy") or ""))
