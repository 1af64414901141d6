"""`edgeferry lint`: what is wrong with data before anything is converted."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from edgeferry_runtime.postprocessing import TASKS

from edgeferry_converter.cli_convert import add_loading, loading_options

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "look for faults in calibration data"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("data", metavar="DATA", help="as for `edgeferry convert --data`")
    add("--for", type=Path, required=True, dest="model", metavar="MODEL", help="the model it is to calibrate")
    add("--labels", type=Path, metavar="FILE", help="one label a line in the order of the model's outputs")
    add("--task", choices=TASKS, help="default: told by the labels")
    add("--preprocess", metavar="PRESET|FILE", help="what the model was trained with; default raw")
    add("--strict", action="store_true", help="warnings fail")
    add_loading(parser)
    add("--json", action="store_true", help="print the findings as JSON")
    add("--verbose", action="store_true", help="show tracebacks and TensorFlow's own messages")


def run(arguments: argparse.Namespace) -> int:
    """Lint; 1 when there are errors, or warnings with --strict."""
    from edgeferry_converter.quiet import quiet

    with quiet(arguments.verbose):
        from edgeferry_converter.convert import lint_request
        from edgeferry_converter.data.lint import to_text
        from edgeferry_converter.request import ConversionRequest

        request = ConversionRequest(
            model=arguments.model,
            profile="",
            data=arguments.data,
            labels=arguments.labels,
            preprocess=arguments.preprocess,
            task=arguments.task,
            load=loading_options(arguments),
        )
        findings = lint_request(request)
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(to_text(findings) or "nothing to complain of")
    heavy = {"error", "warning"} if arguments.strict else {"error"}
    return 1 if any(finding.severity in heavy for finding in findings) else 0
