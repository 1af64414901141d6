"""The command: quick help, verbs, exit codes, errors in both forms."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import pytest
from edgeferry_deploy import cli, plugins
from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.verbs import ELSEWHERE, VERBS

HEAVY = (
    "tensorflow",
    "keras",
    "numpy",
    "cv2",
    "paramiko",
    "rich",
    "asyncssh",
    "cryptography",
    "importlib.metadata",
)
ENTRY = "import sys; from edgeferry_deploy.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("words", [["--help"], ["push", "--help"], ["rollback", "--help"], ["enrol", "--help"]])
def test_help_imports_nothing_heavy(words):
    script = (
        "import sys\nfrom edgeferry_deploy.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print('MODULES', code, ' '.join(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split("MODULES")[1].split()
    assert code == "0"
    assert [name for name in modules if name.startswith(HEAVY)] == []
    assert [name for name in modules if name.startswith("edgeferry")] == [
        "edgeferry_deploy",
        "edgeferry_deploy.cli",
        "edgeferry_deploy.verbs",
    ]


def test_push_itself_imports_neither_numpy_nor_tensorflow():
    script = "import sys, edgeferry_deploy.push, edgeferry_deploy.ssh; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert [
        name for name in modules if name.split(".")[0] in ("numpy", "tensorflow", "keras", "cv2", "rich")
    ] == []


def test_help_answers_within_three_times_the_least_a_command_can_take():
    runs = {
        "floor": [sys.executable, "-c", "import argparse, json"],
        "help": [sys.executable, "-c", ENTRY, "--help"],
        "push help": [sys.executable, "-c", ENTRY, "push", "--help"],
    }
    times = {name: [] for name in runs}
    for _ in range(9):  # interleaved, so that a busy moment hits all of them
        for name, argv in runs.items():
            began = time.perf_counter()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    floor = statistics.median(times["floor"])
    assert statistics.median(times["help"]) < 3 * floor
    assert statistics.median(times["push help"]) < 3 * floor


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for verb in [*VERBS, *ELSEWHERE]:
        assert f"\n  {verb} " in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_module_that_runs_it(verb, capsys):
    import importlib

    module, summary, arguments = VERBS[verb]
    assert callable(importlib.import_module(module).run)
    assert all(options.get("help") for _, options in arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert summary in " ".join(capsys.readouterr().out.split())  # argparse wraps it


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["psuh"], "did you mean 'push'?"),
        (["frobnicate"], "edgeferry --help"),
        (["\x1b[2J"], "there is no verb"),
        (["push", "x.ferry", "nowhere"], "USER@HOST"),
        (["push", "x.ferry", "pi@board", "--root", "relative"], "--root"),
        (["enrol", "local:/tmp/x"], "no host key"),
    ],
)
def test_bad_usage_exits_2_with_a_next_step(words, says, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("edgeferry: error: ")
    assert says in shown
    assert "\x1b" not in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--nonsense"],
        ["push"],
        ["push", "a", "b", "--keep", "1"],
        ["push", "a", "b", "--keep", "²"],
        ["status"],
    ],
)
def test_what_argparse_refuses_exits_2_as_well(words, capsys):
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert "usage: edgeferry" in capsys.readouterr().err


def test_known_failure_exits_1_and_json_says_the_same(tmp_path, capsys):
    words = ["push", str(tmp_path / "nothing.ferry"), f"local:{tmp_path}/board"]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no such bundle" in captured.err
    assert cli.main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)) == {"error", "remedy"}
    assert "no such bundle" in captured.err
    assert not (tmp_path / "board").exists()


def test_traceback_only_when_asked(tmp_path, capsys):
    words = ["push", str(tmp_path / "nothing.ferry"), f"local:{tmp_path}/board"]
    cli.main(words)
    assert "Traceback" not in capsys.readouterr().err
    cli.main([*words, "--verbose"])
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupted)
    assert cli.main(["push"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_fault_of_edgeferry_itself_is_one_sentence(monkeypatch, capsys):
    def broken(_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "dispatch", broken)
    assert cli.main(["push"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in shown
    assert "Traceback" not in shown


class Point:
    """An entry point."""

    def __init__(self, name, command):
        self.name, self._command = name, command

    def load(self):
        if isinstance(self._command, Exception):
            raise self._command
        return self._command


class Hello:
    summary = "says hello"

    @staticmethod
    def configure(parser):
        parser.add_argument("name")

    @staticmethod
    def run(arguments):
        print("hello", arguments.name)
        return 7


def test_verb_of_another_distribution_is_found_through_its_entry_point(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point("hello", Hello)])
    assert cli.main(["hello", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"


def test_absent_converter_is_named_with_its_install_line(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert cli.main(["convert", "model.keras"]) == 1
    assert "pip install edgeferry-converter" in capsys.readouterr().err


def test_broken_plugin_is_named(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point("convert", ImportError("no keras"))])
    assert cli.main(["convert"]) == 1
    assert "no keras" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("edgeferry ")


def test_push_status_and_rollback_by_the_command_line(tmp_path, make_bundle, runtime_folder, capsys, monkeypatch):
    monkeypatch.setattr("edgeferry_deploy.push.installed_runtime", lambda: runtime_folder)
    target = f"local:{tmp_path}/board"
    assert cli.main(["push", str(make_bundle()), target]) == 0
    assert "self-check: 8 frames" in capsys.readouterr().out
    assert cli.main(["push", str(make_bundle(salt="2")), target, "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["blobs_sent"] == 2
    assert set(pushed["seconds"]) == {"look", "send", "assemble", "check", "switch", "total"}
    assert cli.main(["rollback", target, "--json"]) == 0
    back = json.loads(capsys.readouterr().out)
    assert (back["release"], back["previous"]) == (pushed["previous"], pushed["release"])
    assert cli.main(["status", target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["current"]["id"] == back["release"]
    assert cli.main(["push", str(make_bundle("WRONG")), target, "--json"]) == 1
    captured = capsys.readouterr()
    assert "fails its self-check" in json.loads(captured.out)["error"]
    assert "fails its self-check" in captured.err


def test_bar_appears_on_a_terminal_only(monkeypatch, capsys):
    with Console().bar("sending", 5_000_000) as advance:
        assert advance is None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with Console(quiet=True).bar("sending", 5_000_000) as advance:
        assert advance is None
    with Console().bar("sending", 10) as advance:
        assert advance is None
    with Console().bar("sending", 5_000_000) as advance:
        advance(5_000_000)
    assert "sending" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_390_000, "2.4 MB")])
def test_sizes_are_written_for_a_reader(size, text):
    assert size_text(size) == text
