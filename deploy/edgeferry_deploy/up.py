"""`edgeferry up`: from a model and a board to a proven service: probe, profile, convert, gate, push, health."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.errors import UsageError

from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import ConversionFailedError, printable
from edgeferry_deploy.fact_types import Facts
from edgeferry_deploy.probe import probe
from edgeferry_deploy.profile_draft import draft
from edgeferry_deploy.push import PushResult, bounds_of, config_of, push
from edgeferry_deploy.run_toml import default_config
from edgeferry_deploy.target import check_root, parse_target
from edgeferry_deploy.transport import Transport

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["choose_profile", "convert_argv", "run"]

# Boards whose profile knows more than a probe can read; the first whose words all stand in the model's name.
SHIPPED = (
    (("Raspberry Pi 5",), "rpi5"),
    (("Raspberry Pi 500",), "rpi5"),
    (("Raspberry Pi 4",), "rpi4"),
    (("Raspberry Pi 400",), "rpi4"),
    (("Raspberry Pi Zero 2",), "rpi-zero-2w"),
    (("Raspberry Pi 3",), "rpi3"),
    (("Phanbell",), "coral-dev-board"),
    (("Coral", "Dev Board"), "coral-dev-board"),
)


def choose_profile(facts: Facts) -> str:
    """The shipped profile for a board; empty when none is, and the probe's own facts make one.

    A Raspberry Pi with a 32-bit system, or one with an Edge TPU in its USB port, is another kind of board.
    """
    model = facts.model or ""
    name = next((profile for words, profile in SHIPPED if all(word in model for word in words)), "")
    if name.startswith("rpi") and (facts.userland_arch != "aarch64"):
        return ""
    if facts.accelerators and name == "rpi4":
        return "coral-usb-rpi4"
    return "" if facts.accelerators and name.startswith("rpi") else name


def convert_argv(arguments: Namespace, profile: str, bundle: Path) -> list[str]:
    """The conversion, as a user would type it behind `python`."""
    argv = ["-m", "edgeferry_deploy", "convert", arguments.model, "--profile", profile]
    argv += ["--data", arguments.data, "-o", str(bundle), "--json"]
    for option in ("labels", "preprocess", "task", "quantize", "max-drop"):
        value = getattr(arguments, option.replace("-", "_"))
        argv += [f"--{option}", value] if value else []
    return argv


def convert(arguments: Namespace, profile: str, bundle: Path, console: Console) -> dict[str, Any]:
    """Convert in a process of its own: TensorFlow's memory goes before the push begins.

    Raises:
        ConversionFailedError: the conversion or its gate said no; in its own words.
    """
    with console.waiting("converting"):
        done = subprocess.run(
            [sys.executable, *convert_argv(arguments, profile, bundle)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    report: Any = None
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {}
    if done.returncode:
        error = report.get("error") if isinstance(report, dict) else None
        said = (error and printable(str(error), 2000)) or (done.stderr.strip().splitlines() or ["no word"])[-1]
        remedy = report.get("remedy") if isinstance(report, dict) else None
        raise ConversionFailedError(f"{arguments.model} was not converted: {said}", remedy or None)
    return report if isinstance(report, dict) else {}


def figures(report: dict[str, Any]) -> str:
    """What the conversion measured, as far as it has one figure for it."""
    evaluation = report.get("evaluation")
    found = evaluation if isinstance(evaluation, dict) else {}
    variants = found.get("variants")
    accuracies = {"Keras": found.get("keras_accuracy")}
    for name, variant in (variants if isinstance(variants, dict) else {}).items():
        accuracies[name] = variant.get("accuracy") if isinstance(variant, dict) else None
    shown = [f"{name} {value:.1%}" for name, value in accuracies.items() if isinstance(value, float)]
    return f" ({', '.join(shown)})" if len(shown) > 1 else ""


def first_config(transport: Transport, bundle: Path, root: str, config: bytes | None) -> bytes | None:
    """What the board is to run: what was asked for, else what it has, else the profile's camera."""
    from edgeferry_deploy.survey import look

    if config is not None or look(transport, check_root(root)).config:
        return config
    with Bundle.open(bundle) as opened:
        found = default_config(opened.manifest)
    if found is None:
        raise UsageError(
            "nothing says what the board is to look at", "add --config run.toml, or a profile with [camera]"
        )
    return found.to_json().encode()


def up(arguments: Namespace, transport: Transport, console: Console) -> tuple[dict[str, Any], PushResult]:
    """All of it; the conversion's report and what the push did."""
    config = config_of(arguments.config, arguments.any_arch) if arguments.config else None
    facts = probe(transport, root=arguments.root)
    console.step(f"{transport.name}: {facts.model or 'a board'}, {facts.userland_arch or 'unknown'}")
    output = Path(arguments.output) if arguments.output else Path(f"{Path(arguments.model).stem}.ferry")
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        profile = arguments.profile or choose_profile(facts)
        if not profile:
            drafted = Path(folder) / "this-board.toml"
            today = time.strftime("%Y-%m-%d", time.gmtime())
            drafted.write_text(draft(facts, drafted.stem, today), encoding="utf-8")
            profile = str(drafted)
            console.step("no shipped profile is for this board: one was made from what it told")
        else:
            console.step(f"profile {profile}")
        report = convert(arguments, profile, output, console)
    console.step(f"converted {arguments.model}: {output}{figures(report)}")
    config = first_config(transport, output, arguments.root, config)
    result = push(
        output, transport, root=arguments.root, python=arguments.python, any_arch=arguments.any_arch,
        check_seconds=arguments.check_seconds, reason=arguments.reason, config=config, manager=arguments.service,
        bounds=bounds_of(arguments), console=console,
    )  # fmt: skip
    return report, result


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    console = Console(quiet=arguments.json)
    parse_target(arguments.target)
    check_root(arguments.root)
    for path in (arguments.model, arguments.data):
        # A generator or a dataset of Keras has no path; the converter says what it is missing.
        if not Path(path).exists() and ":" not in path:
            raise UsageError(f"{path}: there is no such file or folder", "name the model, and --data DIR")
    with open_transport(arguments.target, arguments.identity) as transport:
        report, result = up(arguments, transport, console)
    if arguments.json:
        console.result({"conversion": report, "push": result.to_dict()})
    return 0
