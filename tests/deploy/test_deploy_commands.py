"""Commands are values: what they say is compared here, no device needed."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from edgeferry_deploy import commands, control, service_setup, upkeep
from edgeferry_deploy.activation import parse_check
from edgeferry_deploy.environment import Environment
from edgeferry_deploy.plan import plan_push
from edgeferry_deploy.release import (
    Blob,
    Record,
    bundle_blobs,
    env_hash,
    launcher_text,
    member_lines,
    release_id,
    stale,
)
from edgeferry_deploy.survey import Python, Survey, parse_survey
from edgeferry_deploy.transfer import Upload, plan_uploads, slices
from edgeferry_runtime.errors import MemberError
from hypothesis import given
from hypothesis import strategies as st

A, B, C = "a" * 64, "b" * 64, "c" * 64

COMMANDS = {
    "survey": (commands.survey("~/x", "digits-1", "/py"), ["~/x", "digits-1", "/py", commands.PROBE]),
    "receive": (commands.receive("/r/blobs/a.part", 7, 90), ["/r/blobs/a.part", "7", "90"]),
    "receive-many": (commands.receive_many("/r", "/py"), ["/r", "/py", commands.UNPACK]),
    "send": (commands.send("/r/file"), ["/r/file"]),
    "publish": (commands.publish("/r"), ["/r"]),
    "assemble": (
        commands.assemble("/r", "id", "0123abcd", "env", "/py", "digest", "#!/bin/sh\n", "token"),
        ["/r", "id", "0123abcd", "env", "/py", "digest", "#!/bin/sh\n", "token", "", ""],
    ),
    "repair": (commands.repair("/r", "id", "token"), ["/r", "id", "token"]),
    "check": (commands.check("/r", "id", "env", 300), ["/r", "id", "env", "300"]),
    "switch": (
        commands.switch("/r", "id", "before", "0123abcd", "/py", "{}", "{}", "token", "1 45 0"),
        ["/r", "id", "before", "0123abcd", "/py", "{}", "{}", "token", "1 45 0"],
    ),
    "commit": (
        commands.commit("/r", "id", "0123abcd", "{}", "{}", "token"),
        ["/r", "id", "0123abcd", "{}", "{}", "token"],
    ),
    "service": (
        service_setup.setup("/r", "auto", "edgeferry", "20 120", "[Unit]\n", "[Unit]\n"),
        ["/r", "auto", "edgeferry", "20 120", control.CONTROL.rstrip("\n"), "[Unit]", "[Unit]"],
    ),
    "service-health": (control.health("/r", "token", 45), ["/r", "health", "token", "45"]),
    "service-revert": (control.revert("/r", "it's gone"), ["/r", "revert", "it's gone"]),
    "service-log": (control.log("/r", 6), ["/r", "log", "6"]),
    "discard": (commands.discard("/r", "id", "{}", "token"), ["/r", "id", "{}", "token"]),
    "lock": (upkeep.take("/r", "token", 60, "{}", "dead", "id"), ["/r", "token", "60", "{}", "dead", "id"]),
    "renew": (upkeep.renew("/r", "token", 60), ["/r", "token", "60"]),
    "unlock": (upkeep.give("/r", "token", "{}"), ["/r", "token", "{}"]),
    "note": (upkeep.note("/r", "{}"), ["/r", "{}"]),
    "history": (upkeep.history("/r", 200), ["/r", "200"]),
    "inspect": (upkeep.inspect("/r"), ["/r", *upkeep.OWN]),
    "remove": (upkeep.remove("/r", "token"), ["/r", "token", *upkeep.OWN]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_a_script_with_its_name_and_its_arguments(name):
    argv, arguments = COMMANDS[name]
    assert argv[:2] == ["sh", "-c"]
    assert argv[3] == f"edgeferry-{name}" == commands.name_of(argv)
    assert argv[4:] == arguments


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_script_parses_in_every_shell_a_board_may_have(name, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    argv = [shell, "sh"] if shell == "busybox" else [shell]
    done = subprocess.run([*argv, "-n", "-c", COMMANDS[name][0][2]], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_scripts_are_the_same_whatever_their_arguments_are(words):
    padded = [*words, "", "", "", ""][:4]
    assert commands.check(*padded[:3], 1)[2] == COMMANDS["check"][0][2]
    assert commands.survey(*padded[:3])[2] == COMMANDS["survey"][0][2]


def test_release_and_env_names():
    assert release_id("digits", A) == "digits-aaaaaaaaaaaa"
    assert env_hash(A, "/usr/bin/python3") == env_hash(A, "/usr/bin/python3")
    assert len({env_hash(A, "/p"), env_hash(B, "/p"), env_hash(A, "/q")}) == 3


@pytest.mark.parametrize("name", ["", ".", "..", "-rf", "a/b", "a b", "A", "a\n", "../x", "x" * 64, "é"])
def test_hostile_bundle_names_never_become_paths(name):
    with pytest.raises(MemberError):
        release_id(name, A)


@pytest.mark.parametrize("version", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_hostile_versions_never_become_paths(version):
    with pytest.raises(MemberError):
        release_id("digits", version)


class FakeBundle:
    """A bundle whose parser let something through."""

    manifest_bytes = b"{}"

    def __init__(self, member, sha256=A):
        entry = type("Entry", (), {"size": 1, "sha256": sha256})()
        self.manifest = type("Manifest", (), {"files": {member: entry}})()


@pytest.mark.parametrize(
    "member",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "-rf",
        "a b",
        "a\nb",
        "a\\b",
        "manifest.json",
        "release.json",
        ".x",
    ],
)
def test_hostile_member_names_never_reach_the_device(member):
    with pytest.raises(MemberError):
        bundle_blobs(FakeBundle(member))
    with pytest.raises(MemberError):
        bundle_blobs(FakeBundle("model.tflite", sha256="../" + "a" * 61))


def test_launcher_survives_a_python_with_a_space(tmp_path):
    python = tmp_path / "it's my" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PYTHONPATH|$*"\n')
    python.chmod(0o755)
    launcher = tmp_path / "a b" / "edgeferry-run"
    launcher.parent.mkdir()
    launcher.write_text(launcher_text(str(python)))
    launcher.chmod(0o755)
    done = subprocess.run(
        [launcher, "check", "x y"], capture_output=True, text=True, check=True, env={"PATH": "/bin"}
    )
    assert done.stdout == f"{launcher.parent}|-m edgeferry_runtime check x y\n"


def record(env="e" * 12, at="2026-01-01", version=A):
    return Record("digits", version, env, "/py", "me@here", at)


def test_record_survives_its_own_json():
    assert Record.from_json(record().to_json()) == record()


STALE = {
    "nothing to prune": ({"a": "1", "b": "2"}, ["a"], 3, []),
    "the oldest goes": ({"a": "1", "b": "2", "c": "3", "d": "4"}, ["d"], 3, ["a"]),
    "protected stays though it is old": ({"a": "1", "b": "2", "c": "3", "d": "4"}, ["d", "a"], 3, ["b"]),
    "protected alone may exceed keep": ({"a": "1", "b": "2", "c": "3"}, ["a", "b", "c"], 2, []),
    "one without a record goes first": ({"a": None, "b": "2", "c": "3"}, ["c"], 3, ["a"]),
}


@pytest.mark.parametrize("case", STALE)
def test_what_is_stale(case):
    times, protected, keep, gone = STALE[case]
    releases = {name: record(at=at) if at else None for name, at in times.items()}
    assert list(stale(releases, [], protected, keep).releases) == gone


def test_env_goes_with_the_last_release_that_uses_it():
    releases = {"old": record(env="1" * 12, at="1"), "new": record(env="2" * 12, at="2")}
    found = stale(releases, ["1" * 12, "2" * 12, "3" * 12], ["new"], 2)
    assert found.envs == ("3" * 12,)
    found = stale(releases, ["1" * 12, "2" * 12], ["new"], 1)
    assert (found.releases, found.envs) == (("old",), ("1" * 12,))
    assert found.lines() == b"release old\nenv 111111111111\n"


BLOBS = (Blob("manifest.json", A, 10), Blob("model.tflite", B, 1_000_000))
RUNTIME = Blob("-", C, 500_000)


def plan(survey):
    environment = Environment("e" * 12, Python("/py"), RUNTIME)
    return plan_push(survey, record(), "digits-aaaaaaaaaaaa", BLOBS, environment)


def test_plan_for_an_empty_device():
    found = plan(Survey("/r"))
    assert [upload.blob.sha256 for upload in found.uploads] == [A, B, C]
    assert (found.assemble, found.created, found.switch, found.repair) == (True, True, True, ())


def test_plan_for_a_device_that_has_it_all():
    known = {"digits-aaaaaaaaaaaa": record()}
    have = dict.fromkeys((A, B, C), True)
    found = plan(
        Survey(
            "/r", blobs=have, releases=known, envs={"e" * 12: True}, current="digits-aaaaaaaaaaaa", previous="p"
        )
    )
    assert (found.uploads, found.assemble, found.created, found.switch) == ((), False, False, False)
    assert "p" not in found.stale.releases


def test_plan_resumes_and_replaces():
    found = plan(Survey("/r", blobs={A: False}, parts={A: 5, B: 60, C: 500_001}))
    assert found.uploads == (Upload(BLOBS[0]), Upload(BLOBS[1], 60), Upload(RUNTIME))
    assert found.corrupt == ("manifest.json",)


def test_same_content_under_two_names_is_sent_once():
    twice = [Blob("a", A, 5), Blob("b", A, 5)]
    assert len(plan_uploads(twice, {}, {})) == 1
    assert member_lines(twice) == f"{A} a\n{A} b\n".encode()


@given(st.binary(max_size=100_000), st.integers(0, 100_000))
def test_slices_are_the_rest_of_the_data(data, offset):
    heard = []
    assert b"".join(slices(data, offset, heard.append)) == data[offset:]
    assert sum(heard) == len(data[offset:])


@given(st.binary(max_size=300))
def test_survey_parser_answers_any_bytes_with_a_survey_or_a_value_error(raw):
    for reply in (raw, b"edgeferry-survey 1\nroot\t/r\twritable\n" + raw + b"\nend\n"):
        try:
            found = parse_survey(reply)
        except ValueError:
            continue
        assert found.root.startswith("/")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["root", "disk", "python", "probe", "blob", "part", "link", "release", "env", "damaged"]
            ),
            st.sampled_from(
                ["/r", "free", "used", "path", "-", A, "current", "digits-aaaaaaaaaaaa", "e" * 12, "\x1b"]
            ),
            st.text(st.characters(exclude_characters="\n"), max_size=40),
        ),
        max_size=12,
    )
)
def test_survey_parser_survives_hostile_values(lines):
    body = "".join("\t".join(line) + "\n" for line in lines)
    try:
        found = parse_survey(f"edgeferry-survey 1\nroot\t/r\twritable\n{body}end\n".encode())
    except ValueError:
        return
    assert "\x1b" not in "".join([found.root, found.current, found.previous, *found.releases, *found.envs])


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(["ok", "outputs", "frames", "bundle", "error", "max_abs", "name"]), c
            )
        ),
    )
)
def test_check_parser_survives_any_json(value):
    try:
        found = parse_check(json.dumps({"ok": True, "outputs": value, "frames": value, "error": value}).encode())
    except ValueError:
        return
    assert found.error.isprintable()


def test_an_output_that_is_no_number_is_infinitely_off():
    output = {"name": "y", "max_abs": None, "max_abs_tolerance": 0.1, "rms": None, "rms_tolerance": 0.1}
    found = parse_check(json.dumps({"ok": False, "outputs": [output], "error": "wrong"}).encode())
    assert found.outputs[0].max_abs == float("inf")
    del output["rms"]
    with pytest.raises(ValueError, match="without figures"):
        parse_check(json.dumps({"ok": False, "outputs": [output]}).encode())
