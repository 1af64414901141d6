"""Who runs trials: processes on this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from edgeferry_runtime.errors import DependencyError

from edgeferry_converter.loading.source import first_line
from edgeferry_converter.sweep_front import SweepError
from edgeferry_converter.sweep_trial import Job, Ran, run_anywhere, run_job

__all__ = ["DaskRunner", "LocalRunner", "Runner", "cores", "default_jobs"]

CONNECT_SECONDS = 20
MOST_JOBS = 256


class Runner(Protocol):
    """Runs trials side by side."""

    @property
    def slots(self) -> int:
        """How many at once."""

    def submit(self, job: Job, folder: Path) -> Future[Ran]:
        """Begin a trial whose files go into a folder of this machine."""

    def close(self) -> None:
        """End what still runs."""


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def default_jobs() -> int:
    """Half of the cores: training keeps more than one busy."""
    return max(1, cores() // 2)


class LocalRunner:
    """Processes on this machine.

    Args:
        jobs: how many at once.
    """

    def __init__(self, jobs: int) -> None:
        self.slots = jobs
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="trial")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mutex = threading.Lock()
        self._closed = False

    def submit(self, job: Job, folder: Path) -> Future[Ran]:
        """See Runner."""
        return self._pool.submit(run_job, job, folder, self._started)

    def close(self) -> None:
        """See Runner."""
        with self._mutex:
            self._closed = True
            for process in self._processes:
                process.kill()  # harmless when it ended
        self._pool.shutdown(cancel_futures=True)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        with self._mutex:
            self._processes = [one for one in self._processes if one.poll() is None] + [process]
            if self._closed:
                process.kill()


class DaskRunner:
    """The workers of a cluster, one trial each at a time; the cluster gives a dead worker's trial to another one.

    The workers see the model and the data under the same paths; files come back over the network.

    Args:
        address: of the scheduler.
        jobs: how many at once; None for one a worker.

    Raises:
        DependencyError: distributed is not installed here.
        SweepError: the scheduler does not answer, or has no worker.
    """

    def __init__(self, address: str, jobs: int | None = None) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise DependencyError(
                "--dask needs distributed, which is not installed", "pip install 'edgeferry-converter[dask]'"
            ) from None
        try:
            connect: Any = Client  # which has no annotations
            self._client = connect(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise SweepError(
                f"the Dask scheduler at {address} does not answer: {error}", "Give the address that it prints."
            ) from None
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            self._client.close()
            raise SweepError(
                f"the Dask scheduler at {address} has no worker", f"Start one: dask worker {address}"
            ) from None
        self._address, self._jobs = address, jobs
        self._pool = ThreadPoolExecutor(MOST_JOBS, thread_name_prefix="dask")
        self._closed = False

    @property
    def slots(self) -> int:
        """See Runner; workers come and go."""
        return min(MOST_JOBS, self._jobs or max(1, len(self._client.nthreads())))

    def submit(self, job: Job, folder: Path) -> Future[Ran]:
        """See Runner."""
        return self._pool.submit(self._run, job, folder)

    def close(self) -> None:
        """See Runner; what a worker has begun it finishes in vain."""
        self._closed = True
        self._client.close()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, job: Job, folder: Path) -> Ran:
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        future = self._client.submit(run_anywhere, job, pure=False)
        try:
            ran: Ran = future.result()
        except KilledWorker as error:
            return Ran(f"it ended several workers: {error}", 0.0)
        except CancelledError:
            raise SweepError(
                f"the Dask scheduler at {self._address} is gone", "Start it; the same command then goes on."
            ) from None
        except Exception as error:  # what a worker raises that lacks the converter, or the working folder
            return Ran(f"the worker failed: {type(error).__name__}: {first_line(error)}", 0.0)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ran.files.items():
            (folder / name).write_bytes(data)
        return ran
