"""The shipped device profiles, profiles of one's own with every kind of fault, and `edgeferry profiles`."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgeferry_converter import cli_profiles, profile
from edgeferry_converter.errors import ConverterError, ProfileError, ProfileNotFoundError
from edgeferry_converter.profile import (
    DeviceProfile,
    available_profiles,
    load_profile,
    load_reference,
    profiles_folder,
)
from edgeferry_converter.schema import dotted, lookup, parse, validate
from edgeferry_runtime.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

SHIPPED = [
    "coral-dev-board",
    "coral-usb-rpi4",
    "generic-arm64",
    "generic-armv7",
    "host",
    "rpi-zero-2w",
    "rpi3",
    "rpi4",
    "rpi5",
]
REFERENCE = load_reference()
RULES = REFERENCE["reference"]
EXAMPLE = {key: value for key, value in REFERENCE.items() if key != "reference"}


def leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        found |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def parsed(name: str) -> dict[str, Any]:
    data, problems = parse((profiles_folder() / f"{name}.toml").read_bytes(), name)
    assert problems == []
    return data


def to_toml(data: dict[str, Any]) -> str:
    """Enough of a TOML writer for profiles: JSON's text, numbers and lists are TOML's too."""
    lines = [f"{dotted(key)} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for table, content in data.items():
        if isinstance(content, dict):
            lines += [
                f"[{dotted(table)}]",
                *(f"{dotted(key)} = {json.dumps(value)}" for key, value in content.items()),
            ]
    return "\n".join(lines)


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """Write a profile of one's own, by default a copy of rpi4 with changed keys (None removes one)."""

    def write(changes: dict[str, Any] | None = None, base: str = "rpi4", text: str | bytes | None = None) -> str:
        data = {**parsed(base), "name": "mine"}
        for path, value in (changes or {}).items():
            *tables, key = path.split(".") if not path.startswith("sources.") else ["sources", path[8:]]
            target = data
            for table in tables:
                target = target.setdefault(table, {})
            if value is None:
                del target[key]
            else:
                target[key] = value
        raw = to_toml(data) if text is None else text
        file = tmp_path / "mine.toml"
        file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return str(file)

    return write


def problems_of(path: str) -> dict[str, str]:
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    error = caught.value
    assert error.exit_code == 2
    assert error.remedy
    assert all(str(problem) in str(error) for problem in error.problems)
    return {problem.path: problem.message for problem in error.problems}


# ---------------------------------------------------------------- what is shipped


def test_these_profiles_are_shipped() -> None:
    assert available_profiles() == SHIPPED


@pytest.mark.parametrize("name", [*SHIPPED, "reference"])
def test_every_shipped_profile_is_valid(name: str) -> None:
    loaded = load_profile(name)
    assert loaded.name == name
    assert loaded.path == profiles_folder() / f"{name}.toml"


@pytest.mark.parametrize("name", [*SHIPPED, "reference"])
def test_every_hardware_fact_is_cited(name: str) -> None:
    data = parsed(name)
    stated = {path for path in RULES["cited"] if lookup(data, path) is not None}
    assert stated == set(data["sources"]) & set(RULES["cited"])
    assert all(len(text) > 10 for text in data["sources"].values())
    facts = {f"board.{key}" for key in data["board"]} - {"board.arch"}  # arch is the choice of a system
    assert facts <= set(data["sources"])


@pytest.mark.parametrize("name", [*SHIPPED, "reference"])
def test_every_shipped_profile_is_commented_and_clean(name: str) -> None:
    text = (profiles_folder() / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "/work" not in text and "/root" not in text


@pytest.mark.parametrize(
    ("name", "soc", "cpu", "cores", "mhz", "ram_mb"),
    [
        ("rpi-zero-2w", "RP3A0 (BCM2710A1)", "Cortex-A53", 4, 1000, 512),
        ("rpi3", "BCM2837", "Cortex-A53", 4, 1200, 1024),
        ("rpi4", "BCM2711", "Cortex-A72", 4, 1500, 1024),
        ("rpi5", "BCM2712", "Cortex-A76", 4, 2400, 4096),
        ("coral-usb-rpi4", "BCM2711", "Cortex-A72", 4, 1500, 1024),
        ("coral-dev-board", "NXP i.MX 8M", "Cortex-A53", 4, None, 1024),
        ("generic-arm64", None, None, None, None, None),
        ("generic-armv7", None, None, None, None, None),
        ("host", None, None, None, None, None),
    ],
)
def test_board_figures(name: str, soc: Any, cpu: Any, cores: Any, mhz: Any, ram_mb: Any) -> None:
    board = load_profile(name).board
    assert (board.soc, board.cpu, board.cores, board.mhz, board.ram_mb) == (soc, cpu, cores, mhz, ram_mb)


@pytest.mark.parametrize(
    ("name", "arch", "glibc", "python", "package"),
    [
        ("rpi4", "aarch64", "2.36", ("3.11", "3.13"), "ai-edge-litert"),
        ("coral-dev-board", "aarch64", "2.28", ("3.7", "3.7"), "tflite-runtime"),
        ("generic-armv7", "armv7l", "2.34", ("3.9", "3.11"), "tflite-runtime"),
        ("host", "any", None, ("3.11", None), "ai-edge-litert"),
    ],
)
def test_system_figures(
    name: str, arch: str, glibc: str | None, python: tuple[str, str | None], package: str
) -> None:
    loaded = load_profile(name)
    assert (loaded.board.arch, loaded.board.glibc_min) == (arch, glibc)
    assert (loaded.python.minimum, loaded.python.maximum) == python
    assert loaded.interpreter.package == package


def test_the_usb_stick_is_described() -> None:
    loaded = load_profile("coral-usb-rpi4").accelerator
    assert loaded.kind == "edgetpu-usb"
    assert loaded.usb_ids == ("1a6e:089a", "18d1:9302")
    assert (loaded.groups, loaded.current_ma, loaded.runtime) == (("plugdev",), 900, 14)


@pytest.mark.parametrize("name", SHIPPED)
def test_dense_layers_are_per_tensor_everywhere(name: str) -> None:
    assert load_profile(name).quantization.dense == "per-tensor"


@pytest.mark.parametrize("name", SHIPPED)
def test_tflite_runtime_never_meets_numpy_2(name: str) -> None:
    interpreter = load_profile(name).interpreter
    assert ("numpy<2" in interpreter.constraints) == (interpreter.package == "tflite-runtime")


# ---------------------------------------------------------------- the reference


def test_the_reference_explains_every_key_in_a_comment() -> None:
    lines = profile.reference_file().read_text(encoding="utf-8").split("\n[sources]")[0].splitlines()
    explained = False  # keys without a gap between them share the comment above the first
    for line in lines:
        is_key = re.match(r"[a-z_]+ = ", line) is not None
        assert explained or not is_key, f"no comment above: {line}"
        explained = line.startswith("#") or (explained and is_key)


def test_the_rules_of_the_reference_name_keys_that_exist() -> None:
    known = set(leaves(EXAMPLE)) | set(EXAMPLE)
    named = [*RULES["optional"], *RULES["open"], *RULES["cited"]]
    named += [*RULES["choices"], *RULES["ranges"], *RULES["patterns"]]
    assert set(named) <= known
    assert set(RULES) == {"optional", "open", "cited", "choices", "ranges", "patterns"}
    assert all(re.compile(pattern) for pattern in RULES["patterns"].values())
    assert all(least < most for least, most in RULES["ranges"].values())


def test_every_number_has_a_range() -> None:
    numbers = {path for path, value in leaves(EXAMPLE).items() if isinstance(value, int)}
    assert numbers == set(RULES["ranges"])


def test_the_dataclasses_have_exactly_the_keys_of_the_reference() -> None:
    loaded = load_profile("reference")
    for table, content in EXAMPLE.items():
        if isinstance(content, dict) and table != "sources":
            fields = dataclasses.fields(getattr(loaded, table))
            assert {field.name for field in fields} == set(content), table
            optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
            assert {f"{table}.{key}" for key in optional} == {
                path for path in RULES["optional"] if path.startswith(f"{table}.")
            }
    assert {field.name for field in dataclasses.fields(DeviceProfile)} == {*EXAMPLE, "path"}


# ---------------------------------------------------------------- the value


@pytest.mark.parametrize("name", [*SHIPPED, "reference"])
def test_values_are_the_files_values_without_the_sources(name: str) -> None:
    data = parsed(name)
    for table in ("sources", "reference"):
        data.pop(table, None)
    values = load_profile(name).values()
    assert values == data
    assert json.loads(json.dumps(values)) == values


def test_a_profile_is_frozen_hashable_and_travels_between_processes() -> None:
    loaded = load_profile("rpi4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.board.cores = 8  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert len({loaded, load_profile("rpi4")}) == 1


def test_the_requirement_is_what_pip_takes(mine: Any) -> None:
    assert load_profile("rpi4").interpreter.requirement == "ai-edge-litert>=2.1,<2.2"
    spaced = load_profile(mine({"interpreter.version": " >= 2.1 , < 2.2"}))
    assert spaced.interpreter.requirement == "ai-edge-litert>=2.1,<2.2"


# ---------------------------------------------------------------- one's own, with faults


def test_a_profile_of_ones_own_loads_by_path(mine: Any) -> None:
    assert load_profile(mine()).name == "mine"


def test_all_faults_are_told_at_once(mine: Any) -> None:
    text = """
        name = "mine"
        cores = 4
        [board]
        arch = "aarch46"
        cores = true
        ram = 512
        mhz = "1500"
        glibc_min = 2.36
        [python]
        minimum = "3"
        [accelerators]
        kind = "none"
        [interpreter]
        package = "tflite"
        version = "2.14"
        threads = -1
        fallback = "tflite-runtime"
        [quantization]
        default = "int4"
        dense = "per_tensor"
        input_dtype = "int8"
        output_dtype = "int8"
        [camera]
        source = "camera:0"
        width = 100000
        height = 480
        fps = 30.0
        [service]
        memory_max_mb = 256
        watchdog_s = 0
        [sources]
        "board.cores" = 4
        [reference]
    """
    faults = problems_of(mine(text=text))
    assert list(faults) == [
        "description",
        "board.arch",
        "board.cores",
        "board.mhz",
        "board.glibc_min",
        "board.ram",
        "python.minimum",
        "accelerator",
        "interpreter.package",
        "interpreter.version",
        "interpreter.threads",
        "interpreter.fallback",
        "quantization.default",
        "quantization.dense",
        "camera.width",
        "camera.fps",
        "service.watchdog_s",
        'sources."board.cores"',
        "cores",
        "accelerators",
        "reference",
    ]
    assert faults["board.arch"].endswith('is "aarch46"; did you mean "aarch64"?')
    assert faults["board.cores"] == "must be a whole number, is true or false (true)"
    assert faults["board.glibc_min"] == "must be text, is a number (2.36)"
    assert faults["board.ram"] == 'unknown key; did you mean "ram_mb"?'
    assert faults["cores"] == 'unknown key; did you mean "board.cores"?'
    assert faults["accelerators"] == 'unknown key; did you mean "accelerator"?'
    assert faults["accelerator"] == "missing table [accelerator]; it needs kind"


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("rpi4", {"name": "other"}, "name"),
    ("rpi4", {"python.minimum": "3.13", "python.maximum": "3.9"}, "python.maximum"),
    ("rpi4", {"service.memory_max_mb": 1025}, "service.memory_max_mb"),
    ("rpi4", {"camera.width": 641}, "camera.width"),
    ("rpi4", {"camera.height": 481}, "camera.height"),
    ("rpi4", {"accelerator.device": "usb:0"}, "accelerator.device"),
    ("rpi4", {"sources.board.mhz": None}, "board.mhz"),
    ("rpi4", {"sources.board.mhz": "  "}, "board.mhz"),
    ("rpi4", {"sources.board.mzh": "somewhere"}, 'sources."board.mzh"'),
    ("generic-armv7", {"quantization.dense": "per-channel"}, "quantization.dense"),
    ("coral-usb-rpi4", {"quantization.dense": "per-channel"}, "quantization.dense"),
    ("coral-usb-rpi4", {"quantization.default": "float32"}, "quantization.default"),
    ("coral-usb-rpi4", {"accelerator.device": "pci:0"}, "accelerator.device"),
    ("coral-usb-rpi4", {"accelerator.device": None}, "accelerator.device"),
    ("coral-usb-rpi4", {"accelerator.library": None, "sources.accelerator.library": None}, "accelerator.library"),
]


@pytest.mark.parametrize(("base", "changes", "path"), CONTRADICTIONS)
def test_contradictions_are_told_with_their_path(mine: Any, base: str, changes: dict[str, Any], path: str) -> None:
    assert list(problems_of(mine(changes, base))) == [path]


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("rpi4", {"service.memory_max_mb": 1024}),
        ("rpi4", {"quantization.dense": "per-channel"}),
        ("rpi4", {"python.minimum": "3.9", "python.maximum": "3.13"}),  # 13 is newer than 9, "1" < "9" as text
        ("coral-usb-rpi4", {"accelerator.device": ":0"}),
        ("rpi4", {"board.mhz": None, "sources.board.mhz": None}),
    ],
)
def test_what_is_no_contradiction(mine: Any, base: str, changes: dict[str, Any]) -> None:
    load_profile(mine(changes, base))


def test_a_misspelt_source_is_recognised(mine: Any) -> None:
    faults = problems_of(mine({"sources.board.mzh": "somewhere"}))
    assert faults['sources."board.mzh"'].endswith('did you mean "board.mhz"?')


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file holds no keys"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not a text file"),
        (b'name = "mine"\n[board\narch = "aarch64"', "not valid TOML"),
    ],
)
def test_files_that_are_no_profile(mine: Any, raw: bytes, said: str) -> None:
    assert next(iter(problems_of(mine(text=raw)).values())).startswith(said)


def test_every_truncation_of_a_profile_is_an_error_with_a_name(mine: Any) -> None:
    whole = (profiles_folder() / "rpi4.toml").read_bytes().replace(b'name = "rpi4"', b'name = "mine"')
    load_profile(mine(text=whole))
    for cut in range(0, whole.index(b'"accelerator.kind"'), 97):
        assert problems_of(mine(text=whole[:cut]))


def test_folders_devices_and_disk_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is a folder"):
        load_profile(str(tmp_path))
    image = tmp_path / "disk.toml"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(ProfileError, match="larger than a device profile"):
        load_profile(str(image))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_an_endless_device_is_refused() -> None:
    with pytest.raises(ProfileError, match="not a regular file"):
        load_profile("/dev/zero")


@pytest.mark.parametrize("name", ["rpi9", "RPI4", "", "raspberry", "rpi 4"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ProfileNotFoundError) as caught:
        load_profile(name)
    assert caught.value.known == tuple(SHIPPED)
    assert isinstance(caught.value, LookupError | ConverterError)
    assert all(known in str(caught.value) for known in SHIPPED)


def test_did_you_mean_for_names() -> None:
    with pytest.raises(ProfileNotFoundError, match=r'Did you mean "rpi-zero-2w"\?'):
        load_profile("rpi-zero2w")


@pytest.mark.parametrize(
    "path", ["nowhere.toml", "no/where", "a\0b.toml", "~nobody-of-that-name/x.toml", "x" * 5000 + ".toml"]
)
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(ProfileNotFoundError):
        load_profile(path)


def test_the_wheel_carries_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "edgeferry_converter"
    (package / "device_profiles").mkdir(parents=True)
    monkeypatch.setattr(profile, "__file__", str(package / "profile.py"))
    with pytest.raises(ConverterError, match="missing from this installation"):
        profiles_folder()
    (package / "device_profiles" / "reference.toml").touch()
    assert profiles_folder() == package / "device_profiles"


# ---------------------------------------------------------------- mutations of valid profiles

REQUIRED = sorted(
    (set(leaves({k: v for k, v in EXAMPLE.items() if k != "sources"})) | set(EXAMPLE)) - set(RULES["optional"])
)
TABLES = sorted(key for key, value in EXAMPLE.items() if isinstance(value, dict) and key != "sources")


@given(st.sampled_from([*SHIPPED, "reference"]), st.sampled_from(REQUIRED))
def test_a_removed_key_is_reported_with_its_path(name: str, path: str) -> None:
    data = copy.deepcopy(parsed(name))
    data.pop("reference", None)
    *tables, key = path.split(".")
    (data[tables[0]] if tables else data).pop(key)
    paths = [problem.path for problem in validate(data, REFERENCE, name)]
    assert paths == [path]


@given(st.sampled_from(SHIPPED), st.sampled_from(["", *TABLES]), st.text(max_size=12), st.integers() | st.text())
def test_an_added_key_is_reported_with_its_path(name: str, table: str, key: str, value: Any) -> None:
    data = copy.deepcopy(parsed(name))
    if key in (EXAMPLE[table] if table else EXAMPLE):
        key += "_"
    (data[table] if table else data)[key] = value
    paths = [problem.path for problem in validate(data, REFERENCE, name)]
    assert paths == [dotted(table, key) if table else dotted(key)]


# ---------------------------------------------------------------- the command


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli_profiles.configure(parser)
    return cli_profiles.run(parser.parse_args(words))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_list_is_plain_columns_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", *SHIPPED]
    assert "\x1b" not in "".join(lines)


def test_the_list_is_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "200")
    assert command() == 0
    assert all(name in screen.getvalue() for name in SHIPPED)
    assert "nothing was run on these boards" in screen.getvalue()


def test_brackets_in_a_profile_are_not_markup(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    path = mine({"board.soc": "[red]SoC[/nonsense]"})
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "200")
    assert command(path) == 0
    assert "[red]SoC[/nonsense]" in screen.getvalue()


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == SHIPPED
    assert entries[SHIPPED.index("rpi5")]["board"]["mhz"] == 2400


def test_one_profile_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("rpi5") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("board.mhz")]
    assert line.split()[1] == "2400"
    assert "overclocking.adoc" in line


def test_one_profile_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("rpi5", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["valid"] is True
    assert shown["sources"] == load_profile("rpi5").sources
    assert {key: shown[key] for key in load_profile("rpi5").values()} == load_profile("rpi5").values()


def test_a_broken_file_as_json(mine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(mine({"board.cores": 0}), "--json") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["valid"] is False
    assert shown["problems"] == [{"path": "board.cores", "message": "must lie between 1 and 256, is 0"}]


def test_a_broken_file_without_json_is_raised(mine: Any) -> None:
    with pytest.raises(ProfileError, match="has 1 problem:"):
        command(mine({"board.cores": 0}))


def test_the_reference_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--reference") == 0
    assert capsys.readouterr().out == profile.reference_file().read_text(encoding="utf-8")


def test_the_reference_takes_no_profile() -> None:
    with pytest.raises(UsageError):
        command("rpi4", "--reference")
    with pytest.raises(SystemExit):
        command("--reference", "--json")


def test_every_argument_has_a_help_text() -> None:
    parser = argparse.ArgumentParser()
    cli_profiles.configure(parser)
    assert all(action.help for action in parser._actions)
    assert cli_profiles.SUMMARY


def test_listing_profiles_loads_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from edgeferry_converter import cli_profiles as c; p = argparse.ArgumentParser();"
        "c.configure(p); c.run(p.parse_args([]));"
        "print([m for m in ('tensorflow', 'keras', 'rich', 'cv2', 'paramiko') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---------------------------------------------------------------- the document


def test_the_document_shows_the_files_figures() -> None:
    text = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells for cells in re.findall(r"^\| `([a-z0-9-]+)` \| (.*) \|$", text, re.MULTILINE)}
    assert sorted(rows) == SHIPPED
    for name, (_, rest) in rows.items():
        cells = rest.split(" | ")
        loaded = load_profile(name)
        board = loaded.board
        assert cells[0] == (board.soc or "-")
        assert cells[1] == (f"{board.cores}x {board.cpu}" if board.cores else "-")
        assert cells[2:5] == [str(board.mhz or "-"), str(board.ram_mb or "-"), board.arch]
        assert cells[6] == (board.glibc_min or "-")
        assert cells[8] == f"`{loaded.interpreter.requirement}`"
