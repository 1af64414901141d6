"""One command for several devices: all at once, each told by its name; one failure keeps nobody from going on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.errors import EdgeferryError

from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import DeployError

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["AT_ONCE", "each", "failed"]

AT_ONCE = 20  # sessions; more share one link and one processor without being done sooner

Work = Callable[[str, Console], dict[str, Any]]


def each(arguments: Namespace, work: Work) -> int:
    """Do the work for every target of a command line; the exit code.

    With one target --json prints its object, with several {"devices": [object or error, ...]} in their order.

    Raises:
        EdgeferryError: that of the only target; of several each is told by itself.
    """
    targets = list(dict.fromkeys(arguments.targets))
    if len(targets) == 1:
        console = Console(quiet=arguments.json)
        found = work(targets[0], console)
        if arguments.json:
            console.result(found)
        return 0
    with ThreadPoolExecutor(min(len(targets), AT_ONCE)) as pool:
        results = list(pool.map(lambda target: one(target, arguments.json, work), targets))
    if arguments.json:
        Console().result({"devices": results})
    bad = failed(results)
    if bad:  # no exception: --json has printed its one object
        said = f"{len(bad)} of {len(targets)} devices failed: {', '.join(bad)}"
        print(f"edgeferry: error: {said}\n  the others are done; run it again for these", file=sys.stderr)
    return 1 if bad else 0


def one(target: str, quiet: bool, work: Work) -> dict[str, Any]:
    """The work for one of several targets, whose failure is a result like others."""
    console = Console(quiet=quiet, name=target)
    try:
        return {"target": target, **work(target, console)}
    except EdgeferryError as error:
        console.step(error.message + (f"\n  {error.remedy}" if error.remedy else ""), "warn")
        return {"target": target, "error": error.message, "remedy": error.remedy or ""}
    except Exception as error:
        found = DeployError(f"{type(error).__name__}: {error}")
        console.step(f"{found.message}: this is a fault of edgeferry; please report it", "warn")
        return {"target": target, "error": found.message, "remedy": ""}


def failed(results: Sequence[dict[str, Any]]) -> list[str]:
    """The targets whose work failed."""
    return [result["target"] for result in results if "error" in result]
