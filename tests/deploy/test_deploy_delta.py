"""Forms of a file: each one becomes the file again, the smallest wins, and what the device cannot use is told."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from edgeferry_deploy.delta import Delivery, difference, find_split, plan_delivery, subtract
from edgeferry_runtime import patching
from hypothesis import given
from hypothesis import strategies as st

WEIGHTS = random.Random(1).randbytes(300_000)


def rebuilt(form: Delivery, base: bytes, size: int, folder: Path) -> bytes:
    """What the device makes of a form."""
    (folder / "payload").write_bytes(form.payload)
    (folder / "base").write_bytes(base)
    used = str(folder / "base") if form.base else ""
    patching.rebuild(str(folder / "payload"), form.codec, used, size, form.split, str(folder / "result"))
    return (folder / "result").read_bytes()


def changed(data: bytes, share: float) -> bytes:
    """Weights after a little more training: some are one or two steps off."""
    rng = random.Random(2)
    return bytes((byte + rng.choice((1, 2, 254, 255))) % 256 if rng.random() < share else byte for byte in data)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_subtract_and_add_are_inverse_byte_by_byte(left, right):
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    gone = subtract(left, right)
    assert gone == bytes((a - b) % 256 for a, b in zip(left, right, strict=True))
    assert patching.add(gone, right) == left


@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 400))
def test_any_difference_at_any_split_gives_the_file_again(tmp_path_factory, data, base, split):
    from gzip import compress

    split = min(split, len(data))
    form = Delivery("delta", 0, compress(difference(data, base, split)), "gzip", "b", split)
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    assert rebuilt(form, base, len(data), folder) == data


def test_slightly_changed_weights_go_as_a_small_difference(tmp_path):
    new = changed(WEIGHTS, 0.02)
    form = plan_delivery(new, len(new), {"old": WEIGHTS})
    assert (form.how, form.base, form.codec) == ("delta", "old", "xz")
    assert form.size == len(form.payload) < 0.12 * len(new)
    assert rebuilt(form, WEIGHTS, len(new), tmp_path) == new


def test_nearest_base_wins():
    new = changed(WEIGHTS, 0.01)
    other = random.Random(3).randbytes(len(WEIGHTS))
    assert plan_delivery(new, len(new), {"other": other, "old": WEIGHTS}).base == "old"
    assert plan_delivery(new, len(new), {"other": other}).how == "full"


@pytest.mark.parametrize("at", [0, 100_000, 299_999])
@pytest.mark.parametrize("inserted", [b"a new label in the table", b""])
def test_inserted_or_removed_bytes_cost_little(tmp_path, at, inserted):
    new = WEIGHTS[:at] + inserted + WEIGHTS[at + (0 if inserted else 37) :]
    form = plan_delivery(new, len(new), {"old": WEIGHTS})
    assert form.how == "delta"
    assert abs(find_split(new, WEIGHTS) - at) <= 8192
    assert form.size < 10_000
    assert rebuilt(form, WEIGHTS, len(new), tmp_path) == new


def test_pruned_weights_go_compressed_and_random_ones_as_they_are(tmp_path):
    rng = random.Random(4)
    pruned = bytes(byte if rng.random() < 0.2 else 0 for byte in WEIGHTS)
    form = plan_delivery(pruned, len(pruned), {})
    assert (form.how, form.base) == ("compressed", "")
    assert form.size < 0.45 * len(pruned)
    assert rebuilt(form, b"", len(pruned), tmp_path) == pruned
    assert plan_delivery(WEIGHTS, len(WEIGHTS), {}) == Delivery("full", len(WEIGHTS))


def test_rest_of_a_cut_upload_is_sent_when_it_is_smaller_than_every_form():
    pruned = bytes(200_000) + WEIGHTS[:100_000]
    assert plan_delivery(pruned, len(pruned), {}).how == "compressed"
    assert plan_delivery(pruned, 50_000, {}) == Delivery("full", 50_000)


def test_same_input_gives_the_same_payload():
    new = changed(WEIGHTS, 0.02)
    forms = [plan_delivery(new, len(new), {"old": WEIGHTS}) for _ in range(2)]
    assert forms[0].digest == forms[1].digest
    text = WEIGHTS[:200_000] + b"text" * 20_000
    assert plan_delivery(text, len(text), {}).payload == plan_delivery(text, len(text), {}).payload


def command(folder: Path, *lines: str, python: str = sys.executable) -> list[str]:
    """What the board's side answers, run as the deployer runs it."""
    source = Path(patching.__file__).read_text()
    done = subprocess.run(
        [python, "-S", "-c", source],
        input="".join(line + "\n" for line in lines).encode(),
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().splitlines()


def test_command_rebuilds_what_it_can_reports_the_rest_and_leaves_no_payload(tmp_path):
    tmp_path = tmp_path / "blobs"
    tmp_path.mkdir()
    new = changed(WEIGHTS, 0.02)
    form = plan_delivery(new, len(new), {"old": WEIGHTS})
    (tmp_path / "old").write_bytes(WEIGHTS)
    for name in ("good", "lost", "long"):
        (tmp_path / f"{name}.part").write_bytes(form.payload)
    (tmp_path / "torn.part").write_bytes(form.payload[: len(form.payload) // 2])
    (tmp_path / "noise.part").write_bytes(b"\x1b[31m\xff\x00")
    size, split = len(new), form.split
    lines = command(
        tmp_path,
        f"good xz new {size} old {split}",
        f"torn xz a {size} old {split}",
        f"noise gzip b {size} - 0",
        f"lost xz c {size} gone {split}",
        f"long xz d {size - 1} old {split - 1}",
        f"never xz e {size} old {split}",
    )
    assert (lines[0], lines[1], lines[-1]) == ("edgeferry-rebuild 1", "rebuilt\tnew", "end")
    assert [line.split("\t")[:2] for line in lines[2:-1]] == [["failed", name] for name in "abcde"]
    assert (tmp_path / "new.part").read_bytes() == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.part", "old"]


def test_unknown_codec_is_reported(tmp_path):
    (tmp_path / "p.part").write_bytes(b"x")
    assert command(tmp_path, "p zstd r 1 - 0")[1].startswith("failed\tr\tKeyError")
