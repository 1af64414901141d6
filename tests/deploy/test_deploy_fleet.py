"""One push to several boards at once."""

from __future__ import annotations

import json

import pytest
from edgeferry_deploy.cli import main


def test_all_boards_get_it_and_the_one_that_cannot_keeps_nobody(make_bundle, tmp_path, capsys):
    boards = [f"local:{tmp_path / name}" for name in ("a", "b", "c")]
    (tmp_path / "c").write_text("no folder")
    assert main(["push", str(make_bundle()), *boards, "--json", "--root", "~/x"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)["devices"]
    assert [device["target"] for device in found] == boards
    assert ["error" in device for device in found] == [False, False, True]
    assert found[0]["release"] == found[1]["release"]
    assert "1 of 3 devices failed: " + boards[2] in said.err
    assert (tmp_path / "b" / "x" / "current").exists()


@pytest.fixture(autouse=True)
def fake_runtime(monkeypatch, runtime_folder):
    monkeypatch.setattr("edgeferry_deploy.push.installed_runtime", lambda: runtime_folder)


def test_every_line_names_its_board_and_one_board_is_told_once(make_bundle, tmp_path, capsys):
    boards = [f"local:{tmp_path / name}" for name in ("a", "b", "a")]
    assert main(["push", str(make_bundle()), *boards]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(": ")[0].split(" ", 1)[1].strip() for line in lines} == set(boards)
    assert sum("done in" in line for line in lines) == 2


def test_one_board_is_told_as_ever(make_bundle, tmp_path, capsys):
    assert main(["push", str(make_bundle()), f"local:{tmp_path / 'a'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["switched"] is True


def test_a_name_that_is_none_stops_all_of_it(make_bundle, tmp_path, capsys):
    assert main(["push", str(make_bundle()), f"local:{tmp_path / 'a'}", "pi@:22"]) == 2
    assert not (tmp_path / "a").exists()
    assert "is not a host name" in capsys.readouterr().err
