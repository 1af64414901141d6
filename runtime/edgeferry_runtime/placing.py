"""Several models at once: as threads of this process or as workers, measured here once, then remembered.

Threads of one process wait for each other whenever Python itself runs; workers do so less, and cost a process
each and two hand-overs a frame.  Which is faster depends on models and board, so both run for a moment.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from edgeferry_runtime import tuning
from edgeferry_runtime.backend import available_cores
from edgeferry_runtime.model import Model
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.remote import open_remote_model
from edgeferry_runtime.sources.base import Frame

__all__ = [
    "THREADS",
    "WORKERS",
    "Placing",
    "auto",
    "choose",
    "measure",
    "placing_key",
    "recall",
    "remember",
    "threads_each",
]

_LOG = logging.getLogger("edgeferry")
THREADS, WORKERS = "threads", "workers"
_WORTH = 1.05  # times the rate that workers must give, for their memory


@dataclass(frozen=True)
class Placing:
    """Where models run, and what that was chosen by.

    Attributes:
        place: "threads" or "workers".
        rates: by place, the geometric mean of the models' results a second while all run at once.
    """

    place: str
    rates: dict[str, float]

    def __str__(self) -> str:
        """As in "workers (measured here: threads: 41/s, workers: 58/s)"."""
        rates = ", ".join("{}: {:.0f}/s".format(place, rate) for place, rate in sorted(self.rates.items()))
        return "{} (measured here: {})".format(self.place, rates)


def threads_each(cores: int, models: int) -> tuple[int, ...]:
    """Interpreter threads for each of so many models: together no more than the cores, at least one each.

    The first ones get what does not divide.
    """
    each, left = divmod(max(cores, models), models)
    return tuple(each + (i < left) for i in range(models))


def choose(rates: Mapping[str, float]) -> str:
    """Workers where they are clearly faster, else threads, which need less memory."""
    return WORKERS if rates[WORKERS] > _WORTH * rates[THREADS] else THREADS


def auto(choices: Sequence[Choices], keys: Sequence[tuple[str, str]], frame: Callable[[], Frame]) -> Placing:
    """What was found out about these models on this board before, else what is found out now.

    Args:
        choices: what each is opened with; its threads are not looked at.
        keys: what ``tuning.loop_key`` gives for each.
        frame: asked for one to measure with.

    Raises:
        EdgeferryError: a model cannot run.
    """
    placing = recall(keys)
    if placing is None:
        each = threads_each(available_cores(), len(choices))
        shared = [chosen._replace(threads=threads) for chosen, threads in zip(choices, each)]
        _LOG.info("measuring whether models run best as threads or as workers here; this is done once")
        placing = measure(
            {
                THREADS: [functools.partial(open_model, chosen) for chosen in shared],
                WORKERS: [functools.partial(open_remote_model, chosen) for chosen in shared],
            },
            frame(),
            tuning.BUDGET_S,
        )
        remember(keys, placing)
    _LOG.info("models run as %s", placing)
    return placing


def measure(
    openers: Mapping[str, Sequence[Callable[[], Model]]], frame: Frame, budget_s: float = tuning.BUDGET_S
) -> Placing:
    """Run the loops of all models at once, in each place for half of the time, and choose.

    Args:
        openers: by place, what opens each of the models there, with the threads it is to have.
        frame: what all of them run, again and again, as fast as they can.
        budget_s: for both places together, without opening the models.

    Raises:
        EdgeferryError: a model cannot run.
    """
    rates = {}
    for place in (THREADS, WORKERS):  # one after the other: both at once might not fit into memory
        with ExitStack() as stack:
            models = [stack.enter_context(opener()) for opener in openers[place]]
            rates[place] = _middle(_side_by_side(models, frame, budget_s / 2))
    return Placing(choose(rates), rates)


def _side_by_side(models: Sequence[Model], frame: Frame, budget_s: float) -> list[float]:
    """Results a second of each while all run."""
    found: list[float | BaseException] = [0.0] * len(models)
    together = threading.Barrier(len(models))

    def run(i: int) -> None:
        try:
            pipeline = Pipeline(tuning.Repeated(frame), models[i])
            together.wait()
            found[i] = tuning._rate(pipeline, budget_s)
        except BaseException as error:
            together.abort()
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), name="edgeferry-placing") for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [each for each in found if isinstance(each, BaseException)]
    if errors:  # who only waited for the one that failed has less to say
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [each for each in found if not isinstance(each, BaseException)]


def _middle(rates: Sequence[float]) -> float:
    """The geometric mean: a fast model must not outweigh a slow one."""
    return math.exp(sum(math.log(rate) for rate in rates) / len(rates)) if all(rates) else 0.0


def placing_key(models: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """What a placing is remembered by, beside the board.

    Args:
        models: what ``tuning.loop_key`` gives for each; their order does not matter.
    """
    texts = sorted("\n".join(model) for model in models)
    return hashlib.sha256("\n\n".join(texts).encode("utf-8")).hexdigest(), "threads or workers"


def recall(models: Sequence[tuple[str, str]]) -> Placing | None:
    """What was chosen for these models on this board before, None where nothing (or nothing readable) is kept."""
    kept = tuning.recall(*placing_key(models))
    if kept is None or set(kept.rates) != {THREADS, WORKERS}:
        return None
    return Placing(choose(kept.rates), kept.rates)


def remember(models: Sequence[tuple[str, str]], placing: Placing) -> bool:
    """Keep it for the next start, beside the thread counts; False where it cannot be kept."""
    return tuning.remember(*placing_key(models), tuning.Choice(1, placing.rates))
