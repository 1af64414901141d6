"""Transfers to a device: smallest form, resumed after any cut, and never trusted before it is hashed."""

from __future__ import annotations

import hashlib
import random
import shutil

import pytest
from edgeferry_deploy import packed
from edgeferry_deploy.errors import CommandError, DeviceReplyError, LinkLostError
from edgeferry_deploy.packed import HOLDINGS, REBUILD, Holdings, ask_holdings, parse_holdings
from edgeferry_deploy.release import Blob
from edgeferry_deploy.sent import SentBlobs
from edgeferry_deploy.transfer import Upload, plan_uploads, send_blobs
from hypothesis import given
from hypothesis import strategies as st

OLD = random.Random(1).randbytes(400_000)
NEW = bytes((byte + 1) % 256 if index % 50 == 0 else byte for index, byte in enumerate(OLD))
TEXT = bytes(random.Random(2).choices(b"abcd", k=900_000))  # shrinks to 30 %, which is still a large payload


def blob(data, member="model.tflite"):
    return Blob(member, hashlib.sha256(data).hexdigest(), len(data), data)


def send(device, *datas, kept=None, parts=None, advance=None, transport=None):
    """Send blobs as a push does; how each went."""
    wanted = [blob(data, f"member{index}") for index, data in enumerate(datas)]
    uploads = plan_uploads(wanted, {}, parts or {})
    if transport is not None:
        return send_blobs(transport, str(device.root), "python3", uploads, None, advance, kept)
    with device.connect() as opened:
        return send_blobs(opened, str(device.root), "python3", uploads, None, advance, kept)


def stored(device, data):
    path = device.root / "blobs" / blob(data).sha256
    return path.exists() and path.read_bytes() == data


def parts(device):
    return [path.name for path in (device.root / "blobs").glob("*.part")]


def test_changed_blob_goes_as_a_difference_to_the_one_that_is_there(device):
    heard = []
    first = send(device, OLD, b"small")
    second = send(device, NEW, b"small too", advance=heard.append)
    assert [way.how for way in first] == ["full", "full"]
    assert [way.how for way in second] == ["delta", "full"]
    assert second[0].size < 0.15 * len(NEW)
    assert sum(heard) == len(NEW) + len(b"small too")
    assert stored(device, NEW)
    assert parts(device) == []


def test_pruned_blob_goes_compressed_and_costs_no_question(device):
    pruned = bytes(byte if index % 20 == 0 else 0 for index, byte in enumerate(OLD))
    with device.connect() as transport:
        [way] = send(device, pruned, transport=transport)
        assert transport.round_trips == 3  # receive-many, rebuild, publish
        assert way.how == "compressed"
        assert transport.bytes_sent < 0.2 * len(pruned)
    assert stored(device, pruned)


def test_base_the_device_lost_is_not_used(device):
    send(device, OLD)
    (device.root / "blobs" / blob(OLD).sha256).unlink()
    assert [way.how for way in send(device, NEW)] == ["full"]
    assert stored(device, NEW)


def test_base_with_other_bytes_gives_a_wrong_hash_and_the_whole_blob_is_sent(device):
    send(device, OLD)
    path = device.root / "blobs" / blob(OLD).sha256
    path.chmod(0o644)
    path.write_bytes(b"\x00" * len(OLD))
    [way] = send(device, NEW)
    assert way.how == "full"
    assert way.size > len(NEW)  # the difference went for nothing
    assert stored(device, NEW)
    assert parts(device) == []


@pytest.mark.parametrize("python", ["exit 1", "echo nonsense", "kill -9 $$", "head -c 3000000 /dev/zero"])
def test_device_that_cannot_rebuild_gets_the_whole_blob(device, tmp_path, python):
    script = tmp_path / "broken-python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    uploads = [Upload(blob(TEXT))]
    with device.connect() as transport:
        [way] = send_blobs(transport, str(device.root), str(script), uploads, None)
    assert way.how == "full"
    assert stored(device, TEXT)


def test_payload_that_was_cut_is_resumed(device):
    with device.connect() as transport:
        upload = transport.upload

        def cut(chunks, path, offset=0, timeout=60.0):
            upload(list(chunks)[:3], path, offset, timeout)
            raise LinkLostError("cut")

        transport.upload = cut
        with pytest.raises(LinkLostError):
            send(device, TEXT, transport=transport)
    assert len(parts(device)) == 1
    [way] = send(device, TEXT)
    assert way.how == "compressed"
    assert 0 < way.size < 0.3 * len(TEXT) - 3 * 32768 + 20_000
    assert stored(device, TEXT)
    assert parts(device) == []


def test_device_that_cannot_write_is_quoted(device):
    (device.root).mkdir(parents=True)
    (device.root / "blobs").write_text("no folder")
    with pytest.raises(CommandError, match=r"(File exists|exists but is not|Not a directory)"):
        send(device, OLD)


def test_holdings_of_no_folder_are_empty(device):
    with device.connect() as transport:
        assert ask_holdings(transport, str(device.root)) == Holdings()


def test_hostile_holdings_are_refused_or_empty():
    class Liar:
        name = "liar"

        def run(self, argv, stdin=None, timeout=0, limit=0):
            from edgeferry_deploy.transport import Completed

            return Completed(tuple(argv), 0, b"\x1b[2Jwelcome\xff", b"")

    with pytest.raises(DeviceReplyError, match="does not begin") as caught:
        ask_holdings(Liar(), "/r")
    assert "\x1b" not in str(caught.value)
    digest = "a" * 64
    lines = [f" 12 {digest}", f"9 {digest}.part", f"-1 {'b' * 64}", "7 ../../etc/passwd", "99 total", "\x1b[0m"]
    raw = "\n".join(["edgeferry-holdings 1", *lines, "end", ""]).encode()
    assert parse_holdings(raw) == Holdings({digest: 12}, {digest: 9})


@given(st.binary(max_size=200))
def test_holdings_parser_answers_any_bytes(raw):
    assert parse_holdings(b"edgeferry-holdings 1\n" + raw + b"\nend\n") is not None


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_scripts_parse_under_small_shells(shell):
    import subprocess

    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    for script in (HOLDINGS, REBUILD):
        argv = [shell, *(["sh"] if shell == "busybox" else []), "-n", "-c", script]
        assert subprocess.run(argv, capture_output=True, check=False).stderr == b""


def test_kept_blobs_are_found_dropped_and_never_trusted(tmp_path):
    import os

    kept = SentBlobs(tmp_path / "sent", limit=1000)
    one, two, three = (bytes([value]) * 400 for value in (1, 2, 3))
    for age, data in ((30, one), (20, two)):
        kept.keep(blob(data).sha256, data)
        os.utime(tmp_path / "sent" / blob(data).sha256, (age, age))
    kept.keep(blob(three).sha256, three)
    assert list(kept.sizes()) == [blob(three).sha256, blob(one).sha256]
    kept.keep("f" * 64, bytes(1001))
    assert "f" * 64 not in kept.sizes()
    (tmp_path / "sent" / blob(one).sha256).write_bytes(b"altered")
    assert kept.read(blob(one).sha256) is None
    assert kept.read("0" * 64) is None
    assert list(kept.sizes()) == [blob(three).sha256]


def test_workstation_without_a_writable_cache_still_sends(device, tmp_path):
    (tmp_path / "file").write_text("")
    kept = SentBlobs(tmp_path / "file" / "below")
    assert [way.how for way in send(device, OLD, kept=kept)] == ["full"]
    assert stored(device, OLD)


def test_only_bases_of_about_the_same_length_are_considered():
    sizes = {"a": 100, "b": 90, "c": 10, "d": 126, "e": 100}
    assert packed.alike(Blob("m", "e", 100), sizes) == ["a", "b"]
