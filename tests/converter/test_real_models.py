"""Trained models of other people on real images: the figures the project promises."""

from __future__ import annotations

import shutil

import pytest
from edgeferry_converter.loading.keras_files import load_model
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_here


@pytest.fixture(scope="module")
def resnet8(keras, real_data, tmp_path_factory):
    import io

    from edgeferry_converter.convert import convert
    from edgeferry_converter.request import ConversionRequest
    from rich.console import Console

    output = tmp_path_factory.mktemp("resnet8") / "resnet8.ferry"
    request = ConversionRequest(
        model=real_data / "mlcommons_tiny" / "resnet8_cifar10_keras2.h5",
        profile="rpi4",
        data=real_data / "cifar10" / "test",
        preprocess="raw",
        output=output,
    )
    return convert(request, Console(file=io.StringIO()))


def test_resnet8_keeps_its_accuracy(resnet8):
    evaluation = resnet8.figures["evaluation"]
    int8 = evaluation["variants"]["int8"]
    assert evaluation["frames"] == 1200
    assert evaluation["keras_accuracy"] > 0.72
    assert evaluation["keras_accuracy"] - int8["accuracy"] <= 0.007
    assert int8["agreement"] >= 0.95
    assert int8["bytes"] < 0.35 * evaluation["variants"]["float32"]["bytes"]


def test_resnet8_bundle_replays(resnet8):
    report = check_here(str(resnet8.bundle), None, None, None)
    assert report.ok
    assert report.frames == 10
    assert resnet8.figures["findings"] == []
    with Bundle.open(resnet8.bundle) as bundle:
        assert bundle.manifest.requires.arch == ("aarch64",)
        assert bundle.read("labels.txt").decode().split()[:3] == ["airplane", "automobile", "bird"]


def test_resnet8_goldens_tell_a_dead_model(resnet8):
    assert resnet8.figures["warnings"] == []


def test_keras2_depthwise_groups_are_accepted(keras, real_data):
    loaded = load_model(real_data / "mlcommons_tiny" / "mobilenet_v1_025_vww_keras2.h5")
    assert loaded.format == "h5"
    assert loaded.keras.input_shape == (None, 96, 96, 3)
    assert any(type(layer).__name__ == "DepthwiseConv2D" for layer in loaded.keras.layers)


@pytest.mark.parametrize("profile", ["rpi4", "coral-usb-rpi4"])
def test_vww_converts_for_its_boards(convert, real_data, tmp_path, profile):
    """Two classes of pictures that are none of its own: structure and parity are judged, not accuracy."""
    for name in ("cat", "truck"):
        shutil.copytree(real_data / "cifar10" / "test" / name, tmp_path / "two" / name)
    model = real_data / "mlcommons_tiny" / "mobilenet_v1_025_vww_keras2.h5"
    result = convert(model, tmp_path / "two", profile=profile, preprocess="unit")
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.9
    assert check_here(str(result.bundle), None, None, None).ok
