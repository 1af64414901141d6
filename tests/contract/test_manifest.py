"""The manifest: what is written can be read, what is broken is named with its path, nothing crashes the parser."""

from __future__ import annotations

import json

import pytest
from edgeferry_runtime.errors import ManifestError, SchemaError
from edgeferry_runtime.manifest import Manifest, content_version, is_member_name
from edgeferry_runtime.strict_json import parse_json
from hypothesis import given, settings
from hypothesis import strategies as st


def as_dict(manifest: Manifest) -> dict:
    return json.loads(manifest.to_bytes())


def seal(value: dict) -> bytes:
    """Bytes of a manifest whose version fits, so that only the planted fault is left."""
    value = dict(value, version=content_version(value))
    return json.dumps(value).encode()


def test_round_trip(contents):
    manifest, _ = contents
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again.to_bytes() == data
    assert len(again.version) == 64
    assert again.variants == manifest.variants
    assert again.preprocessing == manifest.preprocessing


def test_the_version_covers_everything(contents):
    manifest, _ = contents
    value = as_dict(manifest)
    value["preprocessing"]["pad_value"] = 7
    with pytest.raises(ManifestError, match="changed after it was written"):
        Manifest.from_bytes(json.dumps(value).encode())


def test_newer_schema_names_the_remedy(contents):
    value = as_dict(contents[0])
    value.update(schema_version=99, something_new={})
    with pytest.raises(SchemaError) as caught:
        Manifest.from_bytes(seal(value))
    assert "99" in caught.value.message
    assert "pip install --upgrade edgeferry-runtime" in caught.value.remedy


def change(path, value):
    def apply(manifest: dict) -> None:
        *parents, last = path
        for key in parents:
            manifest = manifest[key]
        if value is KeyError:
            del manifest[last]
        else:
            manifest[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["name"], "../evil", "name: is '../evil'"),
        (["name"], 3, "name: must be a string, is an integer"),
        (["schema_version"], True, "schema_version: must be an integer, is true or false"),
        (["variants"], [], "variants: has 0 entries"),
        (["variants"], {}, "variants: must be a list, is an object"),
        (["variants", 0, "scheme"], "int9", "variants[0].scheme: is 'int9', must be one of"),
        (["variants", 0, "scheme"], "int9", "did you mean 'int8'"),
        (["variants", 0, "file"], KeyError, "variants[0].file: is missing"),
        (["variants", 0, "file"], "other.tflite", "names 'other.tflite', which is not in files"),
        (["variants", 0, "inputs", 0, "shape"], [1, "x"], "variants[0].inputs[0].shape[1]: must be an integer"),
        (["variants", 0, "inputs", 0, "shape"], [1, -4], "variants[0].inputs[0].shape: is -4"),
        (["variants", 0, "inputs", 0, "quantization", "scales"], [0.1, 0.2], "2 scales need the axis"),
        (["variants", 0, "inputs", 0, "quantization", "scales"], [-1.0], "must all be greater than 0"),
        (["variants", 0, "tolerance", "scores", "rms"], 0, "variants[0].tolerance.scores.rms: is 0.0"),
        (["variants", 0, "tolerance"], {}, "variants[0].tolerance: must name exactly the outputs scores"),
        (["variants", 0, "input_sha256"], ["00"], "is not 64 hexadecimal digits"),
        (["golden", "frames"], ["golden/frame-00.npy"], "golden.frames: has 1 entries, count is 8"),
        (["golden", "count"], 7, "golden.count: is 7, must be at least 8"),
        (["golden", "frames"], [], "golden: a model with preprocessing has one input and golden frames"),
        (
            ["postprocessing", "outputs"],
            {"scores": "boxes"},
            "postprocessing.outputs.scores: 'boxes' is no output",
        ),
        (["postprocessing", "outputs"], {"mask": "scores"}, "postprocessing.outputs: must name scores for task"),
        (
            ["postprocessing", "task"],
            "detect",
            "must name head or boxes, classes, scores, count for task 'detect'",
        ),
        (["postprocessing", "task"], "clasify", "did you mean 'classify'"),
        (["postprocessing", "threshold"], 1.5, "postprocessing.threshold: is 1.5, must be at most 1.0"),
        (["preprocesing"], {}, "preprocesing: is unknown, did you mean 'preprocessing'"),
        (["preprocessing"], None, "golden.inputs: must name exactly the inputs image"),
        (["preprocessing"], 3, "preprocessing: must be an object, is an integer"),
        (["preprocessing", "scale"], "1", "preprocessing.scale: must be a number, is a string"),
        (["files", "labels.txt", "sha256"], "xyz", "files.labels.txt.sha256: is 'xyz', must be 64"),
        (["files", "labels.txt", "size"], -1, "files.labels.txt.size: is -1"),
        (["files", "../../etc/passwd"], {"size": 1, "sha256": "0" * 64}, "is not a name a member may have"),
        (["files", "LABELS.TXT"], {"size": 1, "sha256": "0" * 64}, "differ only in case"),
        (["requires", "arch"], ["sparc"], "requires.arch: is 'sparc'"),
        (["baseline"], {"brightness": {"mean": 2, "counts": [1] * 20}}, "baseline.brightness.mean: is 2.0"),
        (
            ["baseline"],
            {"confidence": {"mean": 1, "counts": [1] * 19}},
            "counts: has 19 entries, needs at least 20",
        ),
        (["baseline"], {"confidence": {"mean": 1, "counts": [1] * 21}}, "counts: has 21 entries, must have 20"),
        (["baseline"], {"confidence": {"mean": 1, "counts": [-1] * 20}}, "baseline.confidence.counts: is -1"),
        (["requires", "min_glibc"], "new", "requires.min_glibc: is 'new'"),
    ],
)
def test_each_fault_is_named_with_its_path(contents, path, value, words):
    manifest = as_dict(contents[0])
    change(path, value)(manifest)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_bytes(seal(manifest), "manifest.json in x.ferry")
    assert words in caught.value.message
    assert caught.value.message.startswith("manifest.json in x.ferry")
    assert caught.value.remedy


def test_all_faults_come_at_once(contents):
    manifest = as_dict(contents[0])
    change(["name"], "UPPER")(manifest)
    change(["golden", "color"], "rbg")(manifest)
    change(["variants", 0, "outputs", 0, "dtype"], "int7")(manifest)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_bytes(seal(manifest))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1e999}', "is unknown"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 10_000, "manifest.json"),
        (b" " * (9 << 20), "more than a manifest can be"),
    ],
)
def test_what_is_no_json_object(data, words):
    with pytest.raises(ManifestError, match=words):
        Manifest.from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_gives_a_named_error_or_a_manifest(tiny_manifest, data):
    place = manifest = as_dict(tiny_manifest)
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        child = place[key]
        if not isinstance(child, (dict, list)) or not child or data.draw(st.booleans()):
            break
        place = child
    place[key] = data.draw(json_values)
    try:
        raw = seal(manifest)
    except ValueError:
        return  # NaN has no version
    try:
        Manifest.from_bytes(raw)
    except ManifestError as error:
        assert error.problems or error.message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_named_error(data):
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data)


@given(st.text(max_size=20))
def test_any_text_as_json(text):
    try:
        parse_json(text.encode("utf-8", "surrogatepass"), "x")
    except ManifestError as error:
        assert "x: is not valid JSON" in error.message


@pytest.mark.parametrize("name", ["a", "model-int8.tflite", "golden/frame-00.npy", "_x"])
def test_good_member_names(name):
    assert is_member_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "../a", "a/../b", ".a", "a/.b", "a\\b", "C:a", "a b", "a/b/c", "con", "nul.txt", "x/COM1.bin",
     "a\n", "é", "a" * 101],
)  # fmt: skip
def test_bad_member_names(name):
    assert not is_member_name(name)
