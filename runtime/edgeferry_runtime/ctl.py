"""`edgeferry-run ctl`: asks a loop that runs, over its control socket, and shows the answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from typing import Any, Callable, Mapping

from edgeferry_runtime.control import read_line, socket_path
from edgeferry_runtime.errors import EdgeferryError, UsageError
from edgeferry_runtime.service import state_path

__all__ = ["COMMANDS", "ask", "run"]

# What may be asked, with what it does; a loop knows those of the features it runs with.
COMMANDS = {
    "reload": "change to another version of the bundle, without a pause",
    "compare": "the candidate beside the version that runs",
    "promote": "let the candidate take over",
    "abandon": "run the candidate no more",
    "state": "how it goes, as JSON",
    "models": "the models and their versions",
    "record": "write what the flight recorder holds",
}
WAIT_S = 300.0  # for a new version: its goldens are replayed first
_ANSWER_BYTES = 16 << 20
_MARGIN_S = 15.0


def ask(path: str, request: Mapping[str, Any], timeout_s: float = 30.0) -> dict[str, Any]:
    """Send one request and give its answer, which may be that it failed.

    Args:
        path: of the socket.
        request: {"command": NAME, ...}, plain JSON values.
        timeout_s: for the answer.

    Raises:
        EdgeferryError: there is no loop, or it does not answer.
        UsageError: this system has no Unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("ctl needs Unix sockets, which this system does not have", "Restart the loop instead.")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            _connect(connection, path, time.monotonic() + timeout_s)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused: the answer says why
                connection.sendall(json.dumps(request, allow_nan=False).encode("utf-8") + b"\n")
            line, _ = read_line(connection, b"", timeout_s, _ANSWER_BYTES)
    except UsageError as error:
        raise EdgeferryError("the loop at {} does not answer: {}".format(path, error.message)) from None
    except OSError as error:
        raise EdgeferryError(
            "no loop can be asked at {}: {}".format(path, error.strerror or error),
            "Is it running, as this user? --socket names another; it lies beside the loop's --state file.",
        ) from None
    try:
        answer = json.loads(line.decode("utf-8"))
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise EdgeferryError("the loop at {} gave no answer that can be read".format(path))
    return answer


def _connect(connection: socket.socket, path: str, until: float) -> None:
    """Connect; where more wait than the loop has places for, the system says "again", not "wait"."""
    while True:
        try:
            connection.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def run(arguments: argparse.Namespace) -> int:
    """Ask what the command line asks; 0 done, 1 it failed, 2 it was asked wrongly.

    Args:
        arguments: action (one of ``COMMANDS``), bundle (of reload, else None), model, socket, wait_s, json.
    """
    name = arguments.action
    request: dict[str, Any] = {"command": name}
    if arguments.model:
        request["model"] = arguments.model
    if arguments.bundle is not None:
        if name != "reload":
            raise UsageError("{} takes no bundle".format(name), "edgeferry-run ctl reload BUNDLE")
        request["bundle"] = os.path.abspath(arguments.bundle)
    wait_s = WAIT_S if arguments.wait_s is None else arguments.wait_s
    if name in ("reload", "promote"):
        request["wait_s"] = wait_s
    answer = ask(arguments.socket or socket_path(state_path()), request, wait_s + _MARGIN_S)
    if arguments.json:
        print(json.dumps(answer))
    elif answer["ok"]:
        print(_TEXTS.get(name, _plain)(answer))
    else:
        remedy = answer.get("remedy")
        text = "{}\n  {}".format(answer.get("error"), remedy) if remedy else answer.get("error")
        print("edgeferry-run: error: {}".format(text), file=sys.stderr)
    code = answer.get("exit_code")
    return 0 if answer["ok"] else code if code in (1, 2) else 1


def _plain(answer: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in answer.items() if key != "ok"}, indent=1)


def _swap(answer: Mapping[str, Any]) -> str:
    swap = answer["swap"]
    if swap["stage"] != "swapped":
        return "{}: {}; `ctl state` shows how it ends".format(swap["bundle"], swap["stage"])
    gap = "" if swap["gap_ms"] is None else ", {:.1f} ms after the last result".format(swap["gap_ms"])
    return "{} runs{}".format(swap["bundle"], gap)


def _comparison(answer: Mapping[str, Any]) -> str:
    from edgeferry_runtime.comparison import to_text

    report, why = answer["comparison"], answer.get("why")
    lines = [
        "candidate {} ({}): {}{}".format(
            answer["bundle"], answer["mode"], answer["stage"], ", " + why if why else ""
        ),
        "current   {}".format(report["current"]["bundle"] or "-"),
        "",
        to_text(report),
    ]
    if report["disagreements"]:
        lines += ["", "disagreed on {} frames, kept {}".format(report["disagreements"], answer["kept"])]
    if answer["failures"]:
        lines.append("failed on {} frames".format(answer["failures"]))
    lines += ["{} when {}".format(what, rule) for what, rule in answer["rules"].items()]
    if answer["rules"]:
        lines.append("decision: {} ({})".format(answer["decision"]["what"], answer["decision"]["why"]))
    return "\n".join(lines)


_TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "reload": _swap,
    "promote": _swap,
    "abandon": lambda answer: "{} was abandoned".format(answer["bundle"]),
    "compare": _comparison,
}
