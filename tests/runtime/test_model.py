"""Models: the right variant, typed results, tensors only through the door that checks them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgeferry_runtime.errors import BackendError, FrameError, UsageError
from edgeferry_runtime.manifest import TensorSpec, Tolerance
from edgeferry_runtime.model import Model, choose_variant, profile_threads
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.tasks.classify import Classify, class_scores
from edgeferry_runtime.tensors import dequantize, quantize


def with_variants(manifest, *changes):
    return replace(manifest, variants=tuple(replace(manifest.variants[0], **change) for change in changes))


def test_variants_in_order_of_preference(tiny_manifest):
    manifest = with_variants(
        tiny_manifest,
        {"name": "edgetpu", "delegate": "edgetpu"},
        {"name": "int8", "backends": ("ai-edge-litert",)},
        {"name": "float32"},
    )
    both = ["ai-edge-litert", "tflite-runtime"]
    assert choose_variant(manifest, both, ["edgetpu"]).name == "edgetpu"
    assert choose_variant(manifest, both).name == "int8"
    assert choose_variant(manifest, ["tflite-runtime"]).name == "float32"
    assert choose_variant(manifest, both, name="float32").name == "float32"
    with pytest.raises(BackendError, match="edgetpu needs edgetpu"):
        choose_variant(manifest, both, name="edgetpu")
    with pytest.raises(BackendError, match="int8 runs on ai-edge-litert; float32 runs on"):
        choose_variant(manifest, [])
    with pytest.raises(UsageError, match="did you mean 'float32'"):
        choose_variant(manifest, both, name="flaot32")


def test_threads_come_from_the_profile(tiny_manifest, bundle):
    assert profile_threads(tiny_manifest) == 1
    for values in ({}, {"interpreter": 3}, {"interpreter": {"threads": 0}}, {"interpreter": {"threads": "x"}}):
        assert profile_threads(replace(tiny_manifest, profile={"values": values})) is None
    with Model.open(bundle, threads=2) as model:
        assert model.interpreter.threads == 2


def test_a_frame_in_a_result_out(bundle):
    with Model.open(bundle) as model:
        answer = model(np.full((20, 30, 3), 120, np.uint8))
        assert model.identity == "tiny-" + model.bundle.manifest.version[:12]
        assert len(answer.classes) == 4
        assert {c.label for c in answer.classes} == {"alpha", "beta", "gamma", "delta"}
        assert [c.score for c in answer.classes] == sorted((c.score for c in answer.classes), reverse=True)
        total = sum(model.outputs()["scores"][0])
        assert total == pytest.approx(1, abs=0.02)


def test_results_do_not_change_with_the_next_frame(bundle):
    with Model.open(bundle) as model:
        model(np.zeros((8, 12, 3), np.uint8))
        before = model.outputs()["scores"]
        kept = before.copy()
        model(np.full((8, 12, 3), 255, np.uint8))
        np.testing.assert_array_equal(before, kept)
        assert not np.array_equal(model.outputs()["scores"], kept)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.zeros((1, 8, 12, 3), np.float32), "is int8, not float32"),
        (np.zeros((8, 12, 3), np.int8), r"has the shape \[1, 8, 12, 3\], not \[8, 12, 3\]"),
        (np.zeros((1, 12, 8, 3), np.int8), r"not \[1, 12, 8, 3\]"),
    ],
)
def test_tensor_api_checks_shape_and_dtype(bundle, tensor, words):
    with Model.open(bundle) as model, pytest.raises(FrameError, match=words):
        model.set_tensor(tensor)


def test_real_numbers_go_in_by_name(bundle):
    pixels = np.random.default_rng(2).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    with Model.open(bundle) as model:
        by_frame = model(pixels, "rgb")
        model.set_inputs({"image": pixels[None].astype(np.float32)})
        model.invoke()
        assert model.decode() == by_frame
        with pytest.raises(FrameError, match=r"inputs are \['image'\], not \['imag'\]"):
            model.set_inputs({"imag": pixels[None]})
        with pytest.raises(FrameError, match="NaN"):
            model.set_inputs({"image": np.full((1, 8, 12, 3), np.nan)})


def tensors_only(manifest, members):
    """The tiny bundle as if it took no frames: goldens are its input's real numbers."""
    import io

    def load(name):
        return np.load(io.BytesIO(members[name]))

    def dump(array):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    from edgeferry_runtime.preprocessor import Preprocessor

    (variant,) = manifest.variants
    float_spec = replace(variant.inputs[0], dtype="float32", quantization=None)
    preprocess = Preprocessor(manifest.preprocessing, float_spec)
    inputs = [preprocess(load(name), "bgr").copy() for name in manifest.golden.frames]
    for name in manifest.golden.frames:
        del members[name]
    members["golden/input-0.npy"] = dump(np.concatenate(inputs))
    golden = replace(manifest.golden, frames=(), inputs={"image": "golden/input-0.npy"})
    variants = (replace(variant, input_sha256=()),)
    raw = Postprocessing("raw", {}, labels="")
    return replace(manifest, preprocessing=None, golden=golden, variants=variants, postprocessing=raw), members


def test_a_bundle_without_frames(make_bundle, capsys):
    from edgeferry_runtime.cli import main

    path = make_bundle(change=tensors_only)
    assert main(["check", "--bundle", str(path)]) == 0
    assert main(["info", "--bundle", str(path)]) == 0
    assert "inputs come as tensors" in capsys.readouterr().out
    with Model.open(path) as model:
        model.set_inputs({"image": np.zeros((1, 8, 12, 3), np.float32)})
        model.invoke()
        assert list(model.decode().to_json()["outputs"]) == ["scores"]
    assert main(["run", "--bundle", str(path), "--source", "synthetic:8x8", "--frames", "1"]) == 1
    assert "takes tensors (image), not frames" in capsys.readouterr().err


def test_tensor_api_equals_the_frame_way(bundle):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    with Model.open(bundle) as model:
        by_frame = model(pixels, "rgb")
        model.set_tensor((pixels ^ 0x80).view(np.int8)[None])
        model.invoke()
        assert model.decode() == by_frame


def test_bundle_is_closed_when_opening_fails(bundle):
    with pytest.raises(UsageError):
        Model.open(bundle, variant="nope")


SCORES = np.array([[1.0, 3.0, 2.0]], np.float32)


def test_logits_become_probabilities():
    scores = class_scores(np.array([[1000.0, 1001.0], [0.0, 0.0]]), "logits")
    np.testing.assert_allclose(scores, [[0.26894143, 0.7310586], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(("kind", "value"), [("binary-probability", 0.8), ("binary-logit", np.log(4))])
def test_binary_outputs_become_two_classes(kind, value):
    np.testing.assert_allclose(class_scores(np.array([[value]]), kind), [[0.2, 0.8]], rtol=1e-6)


def test_threshold_and_top_k():
    declared = Postprocessing("classify", {"scores": "x"}, top_k=2, threshold=0.3)
    answer = Classify(declared, ["a", "b", "c"])(np.array([[0.29, 0.31, 0.4]], np.float32))
    assert [(c.index, c.label) for c in answer.classes] == [(2, "c"), (1, "b")]
    assert Classify(declared)(np.array([[0.1, 0.2, 0.25]], np.float32)).classes == ()


def test_ties_go_to_the_first_class():
    answer = Classify(Postprocessing("classify", {"scores": "x"}))(np.array([[0.5, 0.5]], np.float32))
    assert [c.index for c in answer.classes] == [0, 1]


def test_per_axis_quantisation_round_trip():
    from edgeferry_runtime.manifest import Quantization

    spec = TensorSpec("x", "x", (1, 2, 3), "int8", "", Quantization((0.1, 0.2, 0.5), (0, 10, -10), 2))
    real = np.array([[[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]]], np.float32)
    stored = quantize(real, spec)
    assert stored.tolist() == [[[10, 20, -4], [-10, 10, 0]]]
    np.testing.assert_allclose(dequantize(stored, spec), real, atol=1e-6)
    with pytest.raises(FrameError, match="NaN"):
        quantize(np.full((1, 2, 3), np.nan), spec)


def test_nan_output_is_an_error_not_a_result(bundle, monkeypatch):
    with Model.open(bundle) as model:
        monkeypatch.setattr(model, "_answer", {"scores": np.full((1, 4), np.nan, np.float32)})
        with pytest.raises(BackendError, match="is NaN"):
            model.decode()


def test_tolerance_is_plain_data():
    assert Tolerance(0.1, 0.2) == Tolerance(max_abs=0.1, rms=0.2)
