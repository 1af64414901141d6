"""Bundles: deterministic bytes, nothing handed out unverified, every way a zip can lie refused by name."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from dataclasses import replace

import pytest
from edgeferry_runtime.bundle import Bundle, write_bundle
from edgeferry_runtime.errors import BundleError, IntegrityError, ManifestError, MemberError
from edgeferry_runtime.manifest import FileEntry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def rewrite(source, target, change):
    """Copy a bundle member by member; ``change(name, data, info)`` gives what to write, or None to leave out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            result = change(info.filename, old.read(info), zipfile.ZipInfo(info.filename, info.date_time))
            if result is not None:
                new.writestr(*result)
    return target


def test_same_contents_same_bytes(contents, tmp_path, monkeypatch):
    manifest, members = contents
    write_bundle(tmp_path / "a.ferry", manifest, members)
    os.utime(tmp_path / "a.ferry", (0, 0))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write_bundle(tmp_path / "b.ferry", manifest, dict(reversed(members.items())))
    assert (tmp_path / "a.ferry").read_bytes() == (tmp_path / "b.ferry").read_bytes()


def test_zip_and_folder_are_the_same_bundle(bundle, bundle_folder):
    with Bundle.open(bundle) as packed, Bundle.open(bundle_folder) as unpacked:
        assert packed.manifest == unpacked.manifest
        assert packed.manifest_bytes == unpacked.manifest_bytes
        packed.verify()
        unpacked.verify()
        for name in packed.manifest.files:
            assert packed.read(name) == unpacked.read(name)


def test_other_files_beside_a_release_are_not_its_business(bundle_folder):
    (bundle_folder / "release.json").write_text("{}")
    with Bundle.open(bundle_folder) as bundle:
        bundle.verify()
        with pytest.raises(MemberError, match=r"has no member release\.json"):
            bundle.read("release.json")


def test_an_unpacked_model_lives_as_long_as_the_bundle(bundle):
    with Bundle.open(bundle) as opened:
        path = opened.file_path("model-int8.tflite")
        with open(path, "rb") as file:
            assert file.read() == opened.read("model-int8.tflite")
    assert not os.path.exists(path)


def test_nothing_is_written_when_manifest_and_members_differ(contents, tmp_path):
    manifest, members = contents
    with pytest.raises(MemberError):
        write_bundle(tmp_path / "x.ferry", manifest, {**members, "extra.txt": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_bundle(contents, tmp_path, monkeypatch):
    manifest, members = contents
    path = tmp_path / "x.ferry"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bundle(path, manifest, members)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(bundle, tmp_path, share):
    data = bundle.read_bytes()
    cut = tmp_path / "cut.ferry"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BundleError, match="only a part of one") as caught:
        Bundle.open(cut)
    assert "Copy the bundle again" in caught.value.remedy


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_byte_is_found_or_harmless(bundle, tmp_path, data):
    """Bytes that mean nothing (dates, say) may change; what a member holds may not."""
    good = bundle.read_bytes()
    with Bundle.open(bundle) as opened:
        expected = {name: opened.read(name) for name in opened.manifest.files}
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bad.ferry"
    path.write_bytes(bad)
    try:
        with Bundle.open(path) as opened:
            opened.verify()
            assert {name: opened.read(name) for name in opened.manifest.files} == expected
    except BundleError as error:
        assert error.remedy


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_file_gives_a_named_error(tmp_path, data):
    path = tmp_path / "any.ferry"
    path.write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "C:\\evil", "a\\..\\evil", ".hidden"])
def test_names_that_leave_the_folder(bundle, tmp_path, name):
    bad = tmp_path / "bad.ferry"
    bad.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(MemberError, match="could leave the folder"):
        Bundle.open(bad)


def test_symbolic_link_in_a_zip(bundle, tmp_path):
    def change(name, data, info):
        if name == "labels.txt":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            data = b"/etc/passwd"
        return info, data

    with pytest.raises(MemberError, match="no regular file"):
        Bundle.open(rewrite(bundle, tmp_path / "bad.ferry", change))


def test_compressed_member_is_refused_before_it_is_inflated(bundle, tmp_path):
    bad = tmp_path / "bomb.ferry"
    bad.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(bad, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", b"\0" * 50_000_000)
    assert bad.stat().st_size < 200_000
    with pytest.raises(MemberError, match="is compressed"):
        Bundle.open(bad)


def test_overlapping_members_are_a_bomb_too(tmp_path):
    """Many entries of the central directory that all point at one stored member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", b"x" * 10_000)
    data = buffer.getvalue()
    directory = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[directory:end]
    entries = b"".join(entry.replace(b"manifest.json", f"memberx{i:06d}".encode()) for i in range(100))
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, 101, 101, len(entry) + len(entries), directory)
    path = tmp_path / "bomb.ferry"
    path.write_bytes(data[:directory] + entry + entries + bytes(tail))
    with pytest.raises(MemberError, match="claims more data than the file holds"):
        Bundle.open(path)


def test_a_member_twice(bundle, tmp_path):
    bad = tmp_path / "bad.ferry"
    bad.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("labels.txt", b"other")
    with pytest.raises(MemberError, match="is there twice"):
        Bundle.open(bad)


@pytest.mark.parametrize("gone", ["labels.txt", "model-int8.tflite", "golden/frame-03.npy", "manifest.json"])
def test_missing_member(bundle, bundle_folder, tmp_path, gone):
    bad = rewrite(bundle, tmp_path / "bad.ferry", lambda name, data, info: None if name == gone else (info, data))
    with pytest.raises(MemberError, match=r"is missing|has no manifest\.json"):
        Bundle.open(bad)
    (bundle_folder / gone).unlink()
    with pytest.raises(BundleError, match=r"is missing|is no bundle"):
        Bundle.open(bundle_folder)


def test_unlisted_member(bundle, tmp_path):
    bad = tmp_path / "bad.ferry"
    bad.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(zipfile.ZipInfo("extra.txt"), b"x")
    with pytest.raises(MemberError, match=r"extra\.txt is not in the manifest"):
        Bundle.open(bad)


def test_same_size_other_bytes(bundle, bundle_folder, tmp_path):
    def change(name, data, info):
        return info, data[:-1] + bytes([data[-1] ^ 1]) if name == "model-int8.tflite" else data

    bad = rewrite(bundle, tmp_path / "bad.ferry", change)
    (bundle_folder / "model-int8.tflite").write_bytes(zipfile.ZipFile(bad).read("model-int8.tflite"))
    for path in (bad, bundle_folder):
        with Bundle.open(path) as opened:
            for use in (opened.verify, lambda o=opened: o.read("model-int8.tflite"),
                        lambda o=opened: o.file_path("model-int8.tflite")):  # fmt: skip
                with pytest.raises(IntegrityError, match="SHA-256"):
                    use()


def test_other_size(bundle_folder):
    with open(bundle_folder / "labels.txt", "ab") as file:
        file.write(b"more\n")
    with pytest.raises(IntegrityError, match="bytes, the manifest says"):
        Bundle.open(bundle_folder)


def test_symbolic_link_in_a_folder(bundle_folder, tmp_path):
    elsewhere = tmp_path / "labels.txt"
    elsewhere.write_bytes((bundle_folder / "labels.txt").read_bytes())
    (bundle_folder / "labels.txt").unlink()
    (bundle_folder / "labels.txt").symlink_to(elsewhere)
    with pytest.raises(MemberError, match="symbolic link"):
        Bundle.open(bundle_folder)


def test_symbolic_link_above_members(bundle_folder, tmp_path):
    (bundle_folder / "golden").rename(tmp_path / "golden")
    (bundle_folder / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises(MemberError, match="symbolic link"):
        Bundle.open(bundle_folder)


def test_a_link_to_the_release_itself_is_how_devices_name_it(bundle_folder, tmp_path):
    (tmp_path / "current").symlink_to(bundle_folder)
    with Bundle.open(tmp_path / "current") as opened:
        opened.verify()


@pytest.mark.parametrize("what", ["missing", "empty folder", "text"])
def test_what_is_no_bundle(tmp_path, what):
    path = tmp_path / "x"
    if what == "empty folder":
        path.mkdir()
    elif what == "text":
        path.write_text("hello")
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_manifest_of_another_bundle(bundle, make_bundle, tmp_path):
    other = zipfile.ZipFile(make_bundle(seed=1)).read("manifest.json")
    bad = rewrite(bundle, tmp_path / "bad.ferry", lambda n, d, i: (i, other if n == "manifest.json" else d))
    with pytest.raises(IntegrityError), Bundle.open(bad) as opened:
        opened.verify()


def test_manifest_that_lies_about_a_size(contents, tmp_path):
    manifest, members = contents
    files = {**manifest.files, "labels.txt": FileEntry(1 << 40, "0" * 64)}
    with pytest.raises(MemberError):
        write_bundle(tmp_path / "x.ferry", replace(manifest, files=files), members)


def test_invalid_manifest_is_never_written(contents, tmp_path):
    manifest, members = contents
    with pytest.raises(ManifestError):
        write_bundle(tmp_path / "x.ferry", replace(manifest, name="NO"), members)
    assert list(tmp_path.iterdir()) == []
