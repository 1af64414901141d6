"""`edgeferry sweep` with real processes whose conversion is made up: resumption, crashes, Dask, boards.

A trial's process runs ``python -m edgeferry_converter.sweep_child``; PYTHONPATH leads it, and it alone, to a
package of that name which stands for the conversion.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeferry_deploy.cli import main
from edgeferry_runtime.bundle import Bundle

pytest.importorskip("optuna")

CHILD = '''
"""Takes the recipe's word for what it would give; does as the files in the working folder say."""
import json, os, shutil, sys, threading, time, tomllib
from pathlib import Path

def end_with_the_parent():
    sys.stdin.buffer.read()
    os._exit(1)

threading.Thread(target=end_with_the_parent, daemon=True).start()
folder, here = Path(sys.argv[1]), Path.cwd()
job = json.loads((folder / "job.json").read_text())
recipe = folder / "recipe.toml"
found = tomllib.loads(recipe.read_text()) if recipe.exists() else {}
with (here / "started").open("a") as file:
    file.write(f"{os.getpid()} {found.get('qat', {}).get('epochs', 0)}\\n")
training = folder / f"{job['name']}.training"
resumed = training.exists()
training.mkdir(exist_ok=True)
while found and (here / "hold").exists():
    time.sleep(0.05)
epochs = found.get("qat", {}).get("epochs", 0)
if (here / "crash").exists() and found and str(epochs) in (here / "crash").read_text().split():
    print("out of everything", flush=True)
    os.kill(os.getpid(), 9)
if (here / "fail").exists() and found:
    reason = (here / "fail").read_text()
else:
    reason = ""
    shutil.copyfile(here / "tiny.ferry", folder / f"{job['name']}.ferry")
    drop = epochs / 1000
    report = {
        "gate": {"int8": {"drop": {"value": drop, "low": drop - 0.01, "high": drop + 0.01}}},
        "evaluation": {"metric": "top-1", "variants": {"int8": {
            "metric": 0.9 - drop, "bytes": 10000 - 100 * epochs, "compressed_bytes": 5000, "resumed": resumed}}},
    }
    (folder / f"{job['name']}.report.json").write_text(json.dumps(report))
    shutil.rmtree(training)
(folder / "result.json").write_text(json.dumps({"reason": reason, "remedy": "", "seconds": 0.1}))
'''
SPACE = 'parts = [["qat"]]\n[qat]\nepochs = [1, 2, 3, 4, 5, 6]\n'


@pytest.fixture
def place(tmp_path, bundle, monkeypatch):
    """The working folder with a model, data and a small space; PYTHONPATH has the made-up conversion."""
    folder = tmp_path / "here"
    folder.mkdir()
    package = tmp_path / "made-up" / "edgeferry_converter"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sweep_child.py").write_text(CHILD)
    shutil.copyfile(bundle, folder / "tiny.ferry")
    (folder / "small.keras").write_bytes(b"a model")
    (folder / "data").mkdir()
    (folder / "data" / "one.png").write_bytes(b"pixels")
    (folder / "space.toml").write_text(SPACE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return folder


def argv(*more: str) -> list[str]:
    fixed = ["sweep", "small.keras", "--profile", "host", "--data", "data", "--train-data", "data", "--json"]
    return [*fixed, "--space", "space.toml", *more]


def sweep(capsys, *more: str) -> dict:
    assert main(argv(*more)) == 0
    return json.loads(capsys.readouterr().out)


def started(place) -> list[list[int]]:
    path = place / "started"
    return (
        [[int(word) for word in line.split()] for line in path.read_text().splitlines()] if path.exists() else []
    )


# Imports the real converter before its own processes look elsewhere.
REAL = "import os, sys; path = os.environ.pop('PYTHONPATH'); sys.path[:] = [p for p in sys.path if p != path]\n"
REAL += "import edgeferry_converter; os.environ['PYTHONPATH'] = path\n"
COMMAND = f"{REAL}from edgeferry_deploy.cli import main; raise SystemExit(main(sys.argv[1:]))"


def begin(*more: str) -> subprocess.Popen:
    """A sweep in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", COMMAND, *argv(*more)], stdout=subprocess.PIPE, text=True)


def until(happens, seconds=60.0):
    ends = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


def test_a_sweep_ends_in_a_table_a_page_and_a_bundle(place, capsys):
    found = sweep(capsys, "--trials", "3", "--pick", "--jobs", "2")
    assert found["trials"][0]["number"] == 0
    assert len(found["trials"]) == 4
    assert found["picked"]["trial"] == found["best"]
    with Bundle.open(place / "small.sweep" / "small.ferry") as picked:
        assert picked.manifest.variants[0].scheme == "int8"
    recipe = found["picked"]["recipe"]
    assert (recipe is None) == (found["best"] == 0)  # the baseline has none
    if recipe is not None:
        assert 'name = "recipe"' in (place / recipe).read_text()
    assert (place / "small.sweep" / "report.html").read_text().count("<circle") == 4
    base = found["trials"][0]
    assert base["ratio"] == 1.0 and base["latency_ms"] > 0
    for trial in found["trials"][1:]:
        assert trial["latency_ms"] == pytest.approx(trial["ratio"] * base["latency_ms"])
    assert main([word for word in argv("--trials", "3") if word != "--json"]) == 0
    said = capsys.readouterr().out
    assert "int8 of the source" in said and "Pareto" in said
    assert len(started(place)) == 4, "the second run tried nothing"


def test_a_second_run_goes_on_and_another_sweep_is_refused(place, capsys):
    sweep(capsys, "--trials", "2")
    assert len(sweep(capsys, "--trials", "4", "--max-drop", "0.5", "--jobs", "2")["trials"]) == 5
    assert len(started(place)) == 5
    (place / "small.keras").write_bytes(b"another model")
    (place / "space.toml").write_text(SPACE.replace("5, 6", "5"))
    assert main(argv("--trials", "4", "--seed", "3")) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    for words in ("MODEL was small.keras", "--seed was 0 and is 3", "--space qat.epochs was"):
        assert words in said
    assert "--data" not in said


def test_a_trial_that_crashes_is_a_failed_trial(place, capsys):
    (place / "crash").write_text("1 2 3")
    found = sweep(capsys, "--trials", "6")
    by_epochs = {trial["recipe"]["qat"]["epochs"]: trial["reason"] for trial in found["trials"] if trial["number"]}
    assert {epochs for epochs, reason in by_epochs.items() if reason} == {1, 2, 3}
    if os.name == "posix":
        assert "SIGKILL" in by_epochs[1] and "out of everything" in by_epochs[1]


def test_when_all_fail_the_reasons_are_told(place, capsys):
    (place / "fail").write_text("the loss is NaN")
    assert main(argv("--trials", "3")) == 1
    error = json.loads(capsys.readouterr().out)
    assert "all 3 trials failed" in error["error"] and "the loss is NaN" in error["error"]
    assert (place / "small.sweep" / "report.html").exists()
    assert len(started(place)) == 4


def test_a_baseline_that_fails_ends_it(place, capsys):
    (place / "tiny.ferry").unlink()
    assert main(argv("--trials", "3")) == 1
    assert "int8 of the source cannot be made" in json.loads(capsys.readouterr().out)["error"]
    assert len(started(place)) == 1


def test_nothing_within_the_limits(place, capsys):
    assert main(argv("--trials", "2", "--max-bytes", "9", "--pick")) == 1
    error = json.loads(capsys.readouterr().out)
    assert "comes nearest" in error["error"] and "--max-bytes" in error["remedy"]
    assert not (place / "small.sweep" / "small.ferry").exists()
    figures = sweep(capsys, "--trials", "2", "--max-bytes", "9", "--pick", "1")
    assert figures["picked"]["outside"] == ["--max-bytes"]
    assert main(argv("--trials", "2", "--pick", "77")) == 2
    assert "does not exist" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "-1"], "--trials is -1"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--max-drop", "nan"], "--max-drop is nan"),
        (["--pick", "best of all"], "is no trial"),
        (["--profile", "hosst"], "hosst"),
        (["--space", "none.toml"], "none.toml cannot be read"),
        (["--output", "small.keras/x"], "cannot be made"),
    ],
)
def test_bad_usage_begins_nothing(place, capsys, more, said):
    assert main(argv(*more)) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]
    assert started(place) == []


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_sweep_takes_its_trials_along_and_goes_on(place, capsys):
    sweep(capsys, "--trials", "1")
    (place / "hold").touch()
    process = begin("--trials", "4", "--jobs", "2")
    until(lambda: len(started(place)) == 4)
    lost = started(place)[2:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not any(alive(pid) for pid, _ in lost))
    (place / "hold").unlink()
    found = sweep(capsys, "--trials", "4", "--jobs", "2")
    assert len(found["trials"]) == 5
    assert len(started(place)) == 4 + 3
    again = started(place)[4:]
    assert {epochs for _, epochs in lost} <= {epochs for _, epochs in again}
    assert resumed(place) == 2, "their checkpoints were used"


def resumed(place) -> int:
    """How many trials went on from what another one had left."""
    reports = (place / "small.sweep" / "trials").glob("*/small.report.json")
    variants = [json.loads(path.read_text())["evaluation"]["variants"]["int8"] for path in reports]
    return sum(variant["resumed"] for variant in variants)


def test_a_trial_that_had_ended_unnoticed_is_not_run_again(place, capsys, monkeypatch):
    from edgeferry_converter import sweep as module

    def interrupted(*_):
        raise KeyboardInterrupt

    sweep(capsys, "--trials", "0")
    with monkeypatch.context() as patch:
        patch.setattr(module._Work, "_finish", interrupted)
        assert main(argv("--trials", "1")) == 130
    capsys.readouterr()
    assert len(started(place)) == 2
    found = sweep(capsys, "--trials", "1")
    assert len(found["trials"]) == 2 and not found["trials"][1]["reason"]
    assert len(started(place)) == 2


@pytest.fixture
def cluster(tmp_path, place):
    """A scheduler and two workers, each a process; the address and the workers."""
    pytest.importorskip("distributed")
    file, preload = tmp_path / "scheduler.json", tmp_path / "preload.py"
    preload.write_text(REAL)
    options = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def dask(kind: str, *words: str, **more) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(file), *words]
        return subprocess.Popen(command, **options, **more)

    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
                     env=without)  # fmt: skip
    processes = [scheduler]
    try:
        until(file.exists)
        alone = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--preload", str(preload))
        workers = [dask("worker", *alone, "--local-directory", str(tmp_path / name)) for name in "ab"]
        processes += workers
        yield json.loads(file.read_text())["address"], scheduler, workers
    finally:
        for process in processes:
            process.kill()
            process.wait()


def worker_of(pid: int) -> int:
    """The process that started a trial."""
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up which worker has which trial")
def test_a_killed_worker_s_trial_is_run_by_another(place, cluster, capsys):
    address, _, workers = cluster
    sweep(capsys, "--trials", "1", "--dask", address)
    (place / "hold").touch()
    process = begin("--trials", "5", "--dask", address, "--jobs", "2")
    until(lambda: len(started(place)) == 4)
    (first, epochs), (second, _) = started(place)[2:]
    assert {worker_of(first), worker_of(second)} == {worker.pid for worker in workers}, "both had one"
    os.kill(worker_of(first), signal.SIGKILL)
    until(lambda: not alive(first))
    (place / "hold").unlink()
    out, _ = process.communicate(timeout=60)
    found = json.loads(out)
    assert process.returncode == 0
    assert len(found["trials"]) == 6 and not any(trial["reason"] for trial in found["trials"])
    tried = [trial["recipe"]["qat"]["epochs"] for trial in found["trials"][1:]]
    assert epochs in tried and len(set(tried)) == 5
    assert [number for _, number in started(place)].count(epochs) == 2
    assert all((place / "small.sweep" / "trials" / f"{t['number']:04d}" / "small.ferry").exists()
               for t in found["trials"])  # fmt: skip


def test_a_scheduler_that_vanishes_loses_nothing(place, cluster, capsys):
    address, scheduler, _ = cluster
    sweep(capsys, "--trials", "1", "--dask", address)
    (place / "hold").touch()
    process = begin("--trials", "3", "--dask", address)
    until(lambda: len(started(place)) == 4)
    scheduler.kill()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "is gone" in json.loads(out)["error"]
    (place / "hold").unlink()
    assert len(sweep(capsys, "--trials", "3")["trials"]) == 4


def test_a_cluster_without_workers(place, cluster, capsys, monkeypatch):
    from edgeferry_converter import sweep_running

    address, _, workers = cluster
    for worker in workers:
        worker.kill()
        worker.wait()
    monkeypatch.setattr(sweep_running, "CONNECT_SECONDS", 3)
    assert main(argv("--dask", address)) == 1
    assert "has no worker" in json.loads(capsys.readouterr().out)["error"]


def test_a_scheduler_that_is_not_there(place, capsys, monkeypatch):
    pytest.importorskip("distributed")
    from edgeferry_converter import sweep_running

    monkeypatch.setattr(sweep_running, "CONNECT_SECONDS", 0.2)
    assert main(argv("--dask", "tcp://127.0.0.1:9")) == 1
    assert "does not answer" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(("module", "more"), [("optuna", []), ("distributed", ["--dask", "tcp://127.0.0.1:9"])])
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(place, capsys, monkeypatch, module, more):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(argv(*more)) == 1
    extra = {"optuna": "sweep", "distributed": "dask"}[module]
    assert json.loads(capsys.readouterr().out)["remedy"] == f"pip install 'edgeferry-converter[{extra}]'"


class Meter:
    """A board that refuses some bundles, or is gone."""

    where = "on a board"

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.asked: list[str] = []

    def measure(self, bundle, baseline):
        from edgeferry_converter.sweep_latency import MeasurementError, Timing

        number = bundle.parent.name
        self.asked.append(number)
        if number in self.refuses:
            raise MeasurementError(f"{number} is refused", "Look at it.")
        return Timing(2.0 if number == "0000" else 1.0)


def test_a_board_may_refuse_a_bundle_or_be_gone(place, capsys, monkeypatch):
    from edgeferry_converter import sweep as module

    meter = Meter()
    monkeypatch.setattr(module, "BoardMeter", lambda target: meter)
    meter.refuses = {"0001"}
    found = sweep(capsys, "--trials", "2", "--measure-on", "pi@board", "--jobs", "1")
    assert meter.asked == ["0000", "0001", "0000", "0002"]
    assert [trial["reason"] for trial in found["trials"]] == ["", "0001 is refused", ""]
    assert [trial["ratio"] for trial in found["trials"]] == [1.0, 0.0, 0.5]
    assert found["trials"][2]["latency_ms"] == 1.0
    assert found["latency"] == "on a board"
    meter.refuses = {"0000", "0003"}
    assert main(argv("--trials", "3", "--measure-on", "pi@board", "--jobs", "1")) == 1
    assert "0000 is refused" in json.loads(capsys.readouterr().out)["error"]
    meter.refuses = set()
    again = len(started(place))
    found = sweep(capsys, "--trials", "3", "--measure-on", "pi@board", "--jobs", "1")
    assert [trial["reason"] for trial in found["trials"]] == ["", "0001 is refused", "", ""]
    assert len(started(place)) == again, "what it had made was only measured once more"
