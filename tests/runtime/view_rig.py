"""A loop with the live page on it, as `edgeferry-run run` puts the two together; load it by its path."""

from __future__ import annotations

import contextlib
import threading
import time

from edgeferry_runtime.conditions import rss_mb
from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.view.server import View
from edgeferry_runtime.view_config import ViewConfig

ANY_PORT = "127.0.0.1:0"


class Next(Roster):
    """The model that was named last."""

    model = None

    def choose(self, running, frame):
        return self.model or running


class Rig:
    """What runs, as the page sees it: one model on one source, in a thread.

    Args:
        bundle: what runs.
        source: named, or one of one's own.
        observers: told of each result, and ticked once a second.
        extra: more of the state.
        lanes: names; what asks for any of them gets the same loop.
    """

    def __init__(self, bundle, source="synthetic:320x240@30", observers=(), extra=None, lanes=("",)):
        self.bundle, self.extra, self.observers = bundle, extra or {}, observers
        self.ready = False
        self.commands = {}
        self.roster = Next()
        self.models = [Model.open(bundle, threads=1)]
        want = self.models[0].frame_size
        self.source = open_source(source, want=want, encoded=True) if isinstance(source, str) else source
        self.pipeline = Pipeline(self.source, self.models[0], roster=self.roster, observers=observers)
        self.lanes = dict.fromkeys(lanes, self.pipeline)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._run, self._tick)]
        for thread in self._threads:
            thread.start()

    def state(self):
        return {**self.pipeline.state(), "rss_mb": rss_mb(), "temperature_c": 51.3, **self.extra}

    def swap(self, bundle):
        """Another version from the next frame on."""
        self.models.append(Model.open(bundle, threads=1))
        self.bundle, self.roster.model = bundle, self.models[-1]

    def open_model(self, lane):
        return Model.open(self.bundle, threads=1)

    def stop(self):
        self._stopping.set()
        self.pipeline.stop()
        for thread in self._threads:
            thread.join(30)
        self.source.close()
        for model in self.models:
            model.close()

    def _run(self):
        for _ in self.pipeline:
            self.ready = True

    def _tick(self):
        while not self._stopping.wait(1.0):
            for observer in self.observers:
                observer.tick()


@contextlib.contextmanager
def page(bundle, source="synthetic:320x240@30", extra=None, lanes=("",), **config):
    """(rig, view) of a page on a free port that is answered."""
    view = View(ViewConfig(**{"listen": ANY_PORT, **config}))
    rig = Rig(bundle, source, [view.lane(name) for name in lanes], extra, lanes)
    try:
        view.start(rig, rig.open_model)
        yield rig, view
    finally:
        view.close()
        rig.stop()


if __name__ == "__main__":  # to look at it: python tests/runtime/view_rig.py BUNDLE SOURCE [TOKENFILE]
    import sys

    with page(*sys.argv[1:3], listen="127.0.0.1:8899", token_file=(sys.argv[3:] or [None])[0]):
        while True:
            time.sleep(1)
