"""`edgeferry demo`: the whole way on this machine: convert, push over SSH, run on video, push again, roll back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import DemoError
from edgeferry_deploy.transport import SLICE, Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

__all__ = ["demo", "run"]

VIDEO_SECONDS = 20
PICTURES = 8  # annotated frames in the report
INSTALL = "pip install edgeferry  (or, from a checkout: make install)"


def demo(output: Path, console: Console) -> dict[str, Any]:
    """Run the demo.

    Args:
        output: folder for everything it makes; made when absent, earlier results in it are replaced.
        console: where steps are told.

    Returns:
        All figures, as demo.json has them.

    Raises:
        DemoError: a step that is not edgeferry's own failed (the example's data, the conversion's process).
        DeployError: the virtual device, the push or the rollback failed.
    """
    started = time.perf_counter()
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    example = examples_folder()
    truth = make_scenes(example, output, console)
    reports = [convert(example, output, version, console) for version in (1, 2)]
    with device_of_its_own(output) as device:
        figures = drive(device, output, truth, console)
    figures["conversions"] = reports
    figures["seconds"] = round(time.perf_counter() - started, 1)
    write_files(output, figures)
    return figures


def examples_folder() -> Path:
    """The digits example: inside an installed wheel, else the repository's own.

    Raises:
        DemoError: neither is there.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "examples" / "digits", here.parents[2] / "examples" / "digits"):
        if (folder / "scene.py").is_file():
            return folder
    raise DemoError("the digits example is missing from this installation", INSTALL)


def make_scenes(example: Path, output: Path, console: Console) -> list[int]:
    """Draw the pictures and the video; the class of every video frame."""
    video = output / "digits.avi"
    argv = [str(example / "scene.py"), "--folders", str(output / "scenes"), "--video", str(video)]
    python([*argv, "--seconds", str(VIDEO_SECONDS)], "drawing the digits")
    truth: list[int] = json.loads(video.with_name("digits.avi.truth.json").read_text("utf-8"))["frames"]
    pictures = sum(1 for _ in (output / "scenes").glob("*/*.png"))
    console.step(f"drew {pictures} pictures and {len(truth)} video frames of digits the models never saw")
    return truth


def convert(example: Path, output: Path, version: int, console: Console) -> dict[str, Any]:
    """`edgeferry convert`, as a user would type it; its report."""
    model = example / ("digits.keras" if version == 1 else f"digits-v{version}.keras")
    bundle = output / f"v{version}" / "digits.ferry"
    bundle.parent.mkdir(exist_ok=True)
    argv = ["-m", "edgeferry_deploy", "convert", str(model), "--profile", "host", "--data", str(output / "scenes")]
    argv += ["--labels", str(example / "labels.txt"), "--preprocess", "unit", "-o", str(bundle), "--json"]
    report: dict[str, Any] = json.loads(python(argv, f"converting {model.name}"))
    evaluation = report["evaluation"]
    int8 = evaluation["variants"]["int8"]
    console.step(
        f"converted {model.name}: Keras {evaluation['keras_accuracy']:.1%}, int8 {int8['accuracy']:.1%} on "
        f"{evaluation['frames']} held-out pictures; {size_text(report['source']['bytes'])} -> "
        f"{size_text(int8['bytes'])}, x{int8['latency']['ratio']:.2f} the time of float32"
    )
    return report


@contextmanager
def device_of_its_own(output: Path) -> Iterator[Any]:
    """A virtual device, and host keys kept in the demo's folder so that the user's own stay as they are."""
    from edgeferry_deploy.virtual_device import virtual_device

    before = os.environ.get("EDGEFERRY_CONFIG_DIR")
    os.environ["EDGEFERRY_CONFIG_DIR"] = str(output / "config")
    try:
        with virtual_device(output / "device") as device:
            yield device
    finally:
        if before is None:
            del os.environ["EDGEFERRY_CONFIG_DIR"]
        else:
            os.environ["EDGEFERRY_CONFIG_DIR"] = before


def drive(device: Any, output: Path, truth: list[int], console: Console) -> dict[str, Any]:
    """Everything that happens on the device, over SSH."""
    from edgeferry_deploy.connect import open_transport
    from edgeferry_deploy.enrol import enrol
    from edgeferry_deploy.push import push
    from edgeferry_deploy.rollback import rollback
    from edgeferry_deploy.status import status
    from edgeferry_deploy.target import parse_target

    enrol(parse_target(device.target), fingerprint=device.host_key_fingerprint, replace=True)  # type: ignore[arg-type]
    console.step(f"a virtual device listens: ssh {device.target}, key {device.host_key_fingerprint}")
    with open_transport(device.target, device.identity) as transport:
        first = push(output / "v1" / "digits.ferry", transport)
        told(console, "pushed", first.to_dict())
        video = f"{first.root}/shared/digits.avi"
        send_file(transport, output / "digits.avi", video)
        run_1 = loop_on_device(transport, first.to_dict(), video, truth, output / "v1")
        loop_told(console, run_1)
        second = push(output / "v2" / "digits.ferry", transport)
        told(console, "pushed the second version", second.to_dict())
        run_2 = loop_on_device(transport, second.to_dict(), video, truth, output / "v2")
        loop_told(console, run_2)
        back = rollback(transport)
        console.step(f"rolled back: current is {back.release} again, checked on the device before the switch")
        again = push(output / "v1" / "digits.ferry", transport)
        state = status(transport)
    if not state["current"]["id"] == back.release == first.release == again.release:
        raise DemoError(f"the device runs {state['current']['id']} after the rollback, not {first.release}", "")
    return {
        "target": device.target,
        "pushes": [first.to_dict(), second.to_dict()],
        "push_with_nothing_new": again.to_dict(),
        "rollback": back.to_dict(),
        "status": state,
        "runs": [run_1, run_2],
    }


def told(console: Console, what: str, pushed: dict[str, Any]) -> None:
    """A push in one line."""
    check = pushed["check"]
    console.step(
        f"{what}: {size_text(pushed['bytes_sent'])} in {pushed['seconds']['total']:.1f} s; "
        f"{check['frames']} golden frames proven there on {check['backend']}; current is {pushed['release']}"
    )


def loop_told(console: Console, run: dict[str, Any]) -> None:
    """A run in one line."""
    summary = run["summary"]
    console.step(
        f"ran on {summary['frames']} video frames there: {run['accuracy']:.1%} right, "
        f"{summary['fps']:.0f} frames/s, age p99 {summary['age_us']['p99'] / 1000:.2f} ms"
    )


def send_file(transport: Transport, path: Path, remote: str) -> None:
    """Upload a file; what plays the camera is not part of a bundle."""

    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while data := file.read(SLICE):
                yield data

    transport.upload(chunks(), remote, timeout=300)


def loop_on_device(
    transport: Transport, pushed: dict[str, Any], video: str, truth: list[int], folder: Path
) -> dict[str, Any]:
    """Run the camera loop there; fetch its results and some annotated frames."""
    remote = f"{pushed['root']}/shared/{pushed['release']}"
    every = max(1, len(truth) // PICTURES)
    checked(transport, ["rm", "-rf", "--", remote])
    checked(transport, ["mkdir", "-p", "--", remote])
    argv = [pushed["launcher"], "run", "--bundle", f"{pushed['root']}/current", "--source", video, "--json"]
    argv += ["--sink", f"jsonl:{remote}/results.jsonl", "--sink", f"annotate:{remote}?every={every}"]
    summary = json.loads(checked(transport, argv, timeout=300).stdout)["summary"]
    results = [json.loads(line) for line in transport.download(f"{remote}/results.jsonl").splitlines()]
    pictures = []
    for number in range(0, len(results), every):
        name = f"frame-{number:06d}.jpg"
        (folder / name).write_bytes(transport.download(f"{remote}/{name}"))
        pictures.append(name)
    answers = [int(result["classes"][0]["label"]) for result in results]
    (folder / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results), "utf-8")
    return {
        "release": pushed["release"],
        "summary": summary,
        "accuracy": sum(a == t for a, t in zip(answers, truth, strict=True)) / len(truth),
        "answers": answers,
        "truth": truth,
        "pictures": [f"{folder.name}/{name}" for name in pictures],
    }


def write_files(output: Path, figures: dict[str, Any]) -> None:
    """demo.json, report.html and the annotated frame; ``figures`` learns where they are."""
    from edgeferry_deploy.demo_report import html_report

    picture = output / "annotated.jpg"
    picture.write_bytes((output / figures["runs"][0]["pictures"][PICTURES // 2]).read_bytes())
    files = {"report": output / "report.html", "annotated frame": picture, "figures": output / "demo.json"}
    figures["files"] = {name: str(path) for name, path in files.items()}
    files["report"].write_text(html_report(figures, output), "utf-8")
    files["figures"].write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def python(argv: Sequence[str], what: str) -> str:
    """Run this Python; its standard output.

    Raises:
        DemoError: it failed, with the last line it printed.
    """
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        remedy = INSTALL if "No module named" in said[-1] else "run the step alone to see all it prints"
        raise DemoError(f"{what} failed: {said[-1]}", f"{remedy}: python {' '.join(argv)}")
    return done.stdout


def run(arguments: Namespace) -> int:
    """The command."""
    console = Console(quiet=arguments.json)
    figures = demo(Path(arguments.output), console)
    if arguments.json:
        console.result(figures)
    else:
        from edgeferry_deploy.demo_report import text_summary

        print(text_summary(figures))
    return 0
