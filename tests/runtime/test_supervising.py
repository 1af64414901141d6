"""The supervisor with real processes: starts, watchdog, back-off, stopping, one a folder, what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the supervisor needs POSIX")

if os.name == "posix":
    from edgeferry_runtime.cli import main
    from edgeferry_runtime.errors import EdgeferryError
    from edgeferry_runtime.supervising import stop_supervisor, supervisor_status
    from edgeferry_runtime.supervisor_folder import BoundedLog, Folder, NotifySocket

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
SAY = """
import os, socket, sys, time, signal
from edgeferry_runtime.service import Notifier
notifier = Notifier()
"""
# What a supervisor with short limits is started with; sys.argv is FOLDER LIMITS COMMAND...
DRIVER = """
import json, sys
from edgeferry_runtime.supervising import Limits, supervise
supervise(sys.argv[1], sys.argv[3:], Limits(**json.loads(sys.argv[2])))
"""
BEATS = SAY + "notifier.ready(); notifier.status('fine')\nwhile True: notifier.watchdog(); time.sleep(0.1)"


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def find_python37():
    """A Python 3.7, which boards still have."""
    names = [shutil.which("python3.7") or ""]
    for root in (os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")):
        names += [str(p) for p in sorted(Path(root, "versions").glob("3.7.*/bin/python"))] if root else []
    for name in filter(None, names):
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        if subprocess.run([name, "-c", probe], capture_output=True, text=True).stdout.strip() == "3.7":
            return name
    return pytest.skip("no Python 3.7 on this machine")


@pytest.fixture(params=["this Python", "3.7"])
def python(request):
    if request.param == "this Python":
        return sys.executable
    return find_python37()


@pytest.fixture
def run_supervisor(tmp_path, python):
    """Starts a supervisor in this folder with short limits; ends what is left of it."""
    running = []
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}

    def start(script, folder=tmp_path / "run", **limits):
        limits = {"start_s": 10, "stop_s": 1, "pauses_s": [0.1, 0.2, 0.4], **limits}
        argv = [python, "-c", DRIVER, str(folder), json.dumps(limits), python, "-c", script]
        process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
        running.append((process, folder))
        return process

    yield start
    for process, folder in running:
        process.kill()
        process.communicate()
        child = state_in(folder).get("child")
        if child:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)


def state_in(folder):
    try:
        return json.loads((folder / "supervisor.json").read_text())
    except FileNotFoundError:
        return {}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def until(folder, **wanted):
    return wait_for(lambda: (s := state_in(folder)).items() >= wanted.items() and s)


def test_a_service_that_runs_and_is_stopped(run_supervisor, folder):
    process = run_supervisor(BEATS, watchdog_s=1)
    state = until(folder, state="running")
    assert state["pid"] == process.pid
    assert alive(state["child"])
    assert (state["restarts"], state["exit"]) == (0, None)
    uptime = float(Path("/proc/uptime").read_text().split()[0]) if Path("/proc/uptime").exists() else None
    assert uptime is None or 0 <= uptime - state["since"] < 20
    until(folder, status="fine")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert supervisor_status(str(folder)).items() >= {"state": "running", "supervised": True}.items()
    time.sleep(1.5)  # the watchdog is fed
    assert state_in(folder)["child"] == state["child"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    ended = state_in(folder)
    assert (ended["state"], ended["pid"], ended["child"], ended["exit"]) == (
        "stopped",
        None,
        None,
        "ended by SIGTERM",
    )
    assert not alive(state["child"])
    assert not (folder / "notify").exists()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("raise SystemExit(0)", "exit status 0"),
        ("raise SystemExit(7)", "exit status 7"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    ],
)
def test_what_ends_is_started_again_and_later_each_time(run_supervisor, folder, script, text):
    run_supervisor(f"print('here', flush=True)\n{script}")
    state = until(folder, restarts=3)
    assert state["exit"] == text
    log = (folder / "service.log").read_text()
    assert log.count("here") >= 3
    assert [f"{text}; starting again in {s} s" in log for s in ("0.1", "0.2", "0.4")] == [True] * 3


def test_a_system_without_waitid(run_supervisor, folder, monkeypatch):
    """As macOS."""
    monkeypatch.setitem(globals(), "DRIVER", "import os; del os.waitid\n" + DRIVER)
    process = run_supervisor(SAY + "notifier.ready(); time.sleep(0.3); sys.exit(4)")
    assert until(folder, restarts=2)["exit"] == "exit status 4"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_a_calm_run_begins_with_the_first_pause(run_supervisor, folder):
    run_supervisor(SAY + "notifier.ready(); time.sleep(0.5)", pauses_s=[0.1, 30], calm_s=0.3)
    until(folder, restarts=2)


def test_a_service_that_was_not_calm_waits_longer(run_supervisor, folder):
    process = run_supervisor("raise SystemExit(1)", pauses_s=[0.1, 30])
    until(folder, restarts=1, state="back-off")
    assert "starting again in 30 s" in (folder / "service.log").read_text()
    process.send_signal(signal.SIGTERM)  # does not wait for the pause
    assert process.wait(5) == 0
    assert state_in(folder)["state"] == "stopped"


def test_a_service_that_never_gets_ready(run_supervisor, folder):
    run_supervisor("import time; time.sleep(60)", start_s=0.5)
    state = until(folder, restarts=1)
    assert state["exit"] == "not ready within 0.5 s; ended by SIGTERM"


def test_a_missed_watchdog_and_a_service_that_ignores_sigterm(run_supervisor, folder):
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnotifier.ready()\ntime.sleep(60)"
    run_supervisor(SAY + script, watchdog_s=0.5, stop_s=0.4)
    assert until(folder, restarts=1)["exit"] == "no sign of life for 0.5 s; ended by SIGKILL"


def test_a_service_that_says_it_stops_and_does_not(run_supervisor, folder):
    run_supervisor(SAY + "notifier.ready(); notifier.stopping(); time.sleep(60)", stop_s=0.4)
    assert until(folder, restarts=1)["exit"] == "stopping took longer than 0.4 s; ended by SIGTERM"


def test_without_a_watchdog_silence_is_fine(run_supervisor, folder):
    script = SAY + "assert notifier.watchdog_period_s is None; notifier.ready(); time.sleep(60)"
    run_supervisor(script)
    state = until(folder, state="running")
    time.sleep(1)
    assert state_in(folder) == state


def test_the_whole_group_goes(run_supervisor, folder, tmp_path):
    note = tmp_path / "grandchild"
    script = SAY + (
        "import subprocess\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN);"
        " print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "p.stdout.read(1)\n"
        f"open({str(note)!r}, 'w').write(str(p.pid))\n"
        "notifier.ready(); time.sleep(60)"
    )
    process = run_supervisor(script, stop_s=0.3)
    until(folder, state="running")
    grandchild = int(note.read_text())
    assert alive(grandchild)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    wait_for(lambda: not alive(grandchild))


def test_a_second_supervisor_says_who_is_there(run_supervisor, folder):
    first = run_supervisor(BEATS)
    until(folder, state="running")
    second = run_supervisor(BEATS)
    _, said = second.communicate(timeout=10)
    assert second.returncode == 1
    assert f"another supervisor (process {first.pid})" in said
    assert state_in(folder)["pid"] == first.pid


def test_the_service_of_a_killed_supervisor_is_ended_by_the_next(run_supervisor, folder):
    first = run_supervisor(BEATS)
    orphan = until(folder, state="running")["child"]
    first.kill()
    first.wait()
    assert alive(orphan)
    assert supervisor_status(str(folder)).items() >= {"state": "stopped", "supervised": False}.items()
    second = run_supervisor(BEATS)
    until(folder, state="running", pid=second.pid)
    assert not alive(orphan)


def test_the_log_is_bounded(run_supervisor, folder):
    script = (
        SAY
        + "notifier.ready()\nfor i in range(3000): print('%06d' % i, 'x' * 90)\n"
        + "print('last', flush=True); time.sleep(60)"
    )
    run_supervisor(script, log_bytes=20000)
    wait_for(
        lambda: "last" in (folder / "service.log").read_text() if (folder / "service.log").exists() else False
    )
    sizes = {path.name: path.stat().st_size for path in folder.glob("service.log*")}
    assert set(sizes) == {"service.log", "service.log.1"}
    assert all(size <= 20000 for size in sizes.values())


def test_a_command_that_is_not_there(run_supervisor, folder, tmp_path, python):
    argv = [python, "-c", DRIVER, str(folder), '{"pauses_s": [30]}', str(tmp_path / "no such thing")]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(RUNTIME)})
    try:
        state = until(folder, state="back-off")
        assert "cannot be started: No such file" in state["exit"]
    finally:
        process.terminate()
        process.wait(10)


def test_a_path_too_long_for_a_socket(run_supervisor, tmp_path):
    folder = tmp_path / ("d" * 100) / "run"
    process = run_supervisor(BEATS, folder=folder, watchdog_s=1)
    until(folder, state="running")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_a_short_socket_folder_goes_with_its_socket(tmp_path):
    with NotifySocket(str(tmp_path / ("d" * 120))) as notify:
        parent = Path(notify.address).parent
        assert parent.stat().st_mode & 0o777 == 0o700
    assert not parent.exists()


def test_hostile_messages_do_not_matter(run_supervisor, folder):
    script = SAY + (
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET'])\n"
        "for m in (b'', b'\\xff\\xfe', b'READY', b'x' * 4000, b'WATCHDOG=1'): s.send(m)\n"
        "s.send(b'STATUS=' + b'\\x1b[2J' * 500)\n"
        "time.sleep(0.2); notifier.ready(); time.sleep(60)"
    )
    run_supervisor(script)
    state = until(folder, state="running")
    assert state["restarts"] == 0
    status = wait_for(lambda: state_in(folder)["status"])
    assert len(status) <= 200
    assert "\x1b" not in status


# The command.


def command(*words, timeout=30):
    return subprocess.run(
        [sys.executable, "-m", "edgeferry_runtime", "supervise", *words],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, "PYTHONPATH": str(RUNTIME)},
    )  # fmt: skip


def test_detached_shown_and_stopped(folder, tmp_path):
    words = ("--runtime", str(folder))
    assert command(*words, "--status").returncode == 3
    assert command(*words, "--stop").returncode == 0
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgeferry_runtime", "supervise", *words, "--watchdog", "5", "--detach", "--",
             sys.executable, "-c", BEATS, "--", "x"],
            capture_output=True, text=True, timeout=30, pass_fds=(write,),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        os.close(write)
        assert select.select([read], [], [], 5)[0]  # what the caller had open is not held
        assert os.read(read, 1) == b""
        state = until(folder, state="running")
        assert os.getsid(state["pid"]) != os.getsid(0)
        shown = command(*words, "--status", "--json")
        assert shown.returncode == 0
        assert json.loads(shown.stdout)["child"] == state["child"]
        again = command(*words, "--detach", "--", "true")
        assert again.returncode == 1
        assert "another supervisor" in again.stderr
    finally:
        os.close(read)
        stopped = command(*words, "--stop", "--json")
    assert json.loads(stopped.stdout) == {"ok": True, "stopped": True}
    assert not alive(state["pid"])
    assert not alive(state["child"])
    assert json.loads(command(*words, "--status", "--json").stdout)["state"] == "stopped"


def test_detached_and_in_vain(folder):
    folder.mkdir(mode=0o700)
    (folder / "notify").mkdir()
    done = command("--runtime", str(folder), "--detach", "--", "true")
    assert done.returncode == 1
    assert "did not start" in done.stderr


def test_no_command(folder, capsys):
    assert main(["supervise", "--runtime", str(folder)]) == 2
    assert "no command" in capsys.readouterr().err


def test_no_other_system(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    for words in (["--", "true"], ["--stop"], ["--status"]):
        assert main(["supervise", "--runtime", str(folder), *words]) == 1
        assert "Linux and macOS only" in capsys.readouterr().err


# The folder.


def test_folders_that_somebody_else_may_have_made(tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    open_one = tmp_path / "open"
    open_one.mkdir()
    open_one.chmod(0o777)
    for path, words in ((link, "is a link"), (file, "is no folder"), (open_one, "may be written by others")):
        for use in (Folder.make, supervisor_status, stop_supervisor):
            with pytest.raises(EdgeferryError, match=words):
                use(str(path))
    mine = tmp_path / "mine"
    Folder.make(str(mine))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(EdgeferryError, match="belongs to another user"):
        Folder.make(str(mine))


def test_links_inside_the_folder_are_not_followed(tmp_path):
    folder = Folder.make(str(tmp_path / "run"))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("supervisor.lock", "service.log", "supervisor.json.new"):
        (tmp_path / "run" / name).symlink_to(victim)
    with pytest.raises(EdgeferryError):
        folder.lock()
    with pytest.raises(OSError):
        folder.write_state({})
    BoundedLog(folder.log_path, 100).write(b"x")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00", "[" * 30000])
def test_a_state_that_is_none(tmp_path, content):
    folder = Folder.make(str(tmp_path / "run"))
    (tmp_path / "run" / "supervisor.json").write_text(content)
    with pytest.raises(EdgeferryError, match="is no state"):
        folder.read_state()
    folder.end_orphan(0.1)


def test_a_log_in_pieces(tmp_path):
    log = BoundedLog(str(tmp_path / "log"), 10)
    log.write(b"0123456789ABCDEF")
    assert (tmp_path / "log").read_bytes() == b"ABCDEF"
    assert (tmp_path / "log.1").read_bytes() == b"0123456789"
    log.close()
    again = BoundedLog(str(tmp_path / "log"), 10)
    again.write(b"ghijk")
    assert (tmp_path / "log").read_bytes() == b"ghijk"
    assert (tmp_path / "log.1").read_bytes() == b"ABCDEF"
    again.close()
