"""TFLite metadata: names, normalisation and labels inside the .tflite, so that MediaPipe and Android read them.

The form is ``tensorflow_lite_support/metadata/metadata_schema.fbs`` of tensorflow/tflite-support, 1.0 of its
versions: a flatbuffer in one of the model's buffers, and the label file in a zip behind the model, which
interpreters never look at.  The numbers of fields and enumerations below are that schema's.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types

from edgeferry_converter.edgetpu import placement
from edgeferry_converter.errors import ConversionError, ModelError
from edgeferry_converter.tflite_file import IDENTIFIER, TfliteModel, TfliteTensor, read_model

__all__ = ["TfliteMetadata", "pixel_normalization", "read_metadata", "uint8_pixel_error", "with_metadata"]

ENTRY = "TFLITE_METADATA"
METADATA_IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"
LABELS = "labels.txt"
ALIGNMENT = 16  # schema.fbs: Buffer.data has force_align 16
MOST_LABEL_BYTES = 1 << 24
LARGEST, SMALLEST_STD = 1e12, 1e-9  # what is divided by what must still fit float32

IMAGE_PROPERTIES = 2  # union ContentProperties
NORMALIZATION_OPTIONS = 1  # union ProcessUnitOptions
TENSOR_AXIS_LABELS = 2  # enum AssociatedFileType
COLORS = {"rgb": 1, "gray": 2}  # enum ColorSpaceType

_BROKEN = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError)
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError, RuntimeError)


@dataclass(frozen=True)
class TfliteMetadata:
    """What the metadata of an image classifier says.

    Attributes:
        name, description: of the model.
        input_name, output_name: of the first input and output.
        mean, std: ``(pixel - mean) / std`` on pixels of 0 to 255; one value each, or one a channel.
        color: "rgb", "gray" or "" where it is not said.
        labels: in the order of the output; empty when there are none.
        minimum, maximum: of the output's values.
    """

    name: str
    description: str
    input_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    output_name: str
    color: str = "rgb"
    minimum: float = 0.0
    maximum: float = 1.0


def with_metadata(
    model: bytes,
    *,
    name: str,
    description: str,
    input_name: str,
    mean: Sequence[float],
    std: Sequence[float],
    labels: Sequence[str] | None,
    output_name: str,
    color: str = "rgb",
    minimum: float = 0.0,
    maximum: float = 1.0,
) -> bytes:
    """Write metadata into a model, in place of what it had; the same arguments give the same bytes.

    Args:
        model: the .tflite.
        name, description: of the model.
        input_name, output_name: of the first input and output; further ones keep their tensors' names.
        mean, std: of ``(pixel - mean) / std`` on pixels of 0 to 255: one value, or one for each channel.
            Readers apply them to float inputs; to uint8 inputs MediaPipe gives the pixels as they are.
        labels: one for each value of the first output, or None.
        color: "rgb" or "gray"; the standard has no name for BGR.
        minimum, maximum: of the output's values.

    Raises:
        ConversionError: the metadata would not be true of the model, or the model is compiled for the Edge TPU
            or keeps weights behind the flatbuffer (more than 2 GB).
        ModelError: the model is damaged.
    """
    content = read_model(model)
    metadata = TfliteMetadata(
        name,
        description,
        input_name,
        tuple(mean),
        tuple(std),
        tuple(labels or ()),
        output_name,
        color,
        minimum,
        maximum,
    )
    _check(content, metadata)
    try:
        packed = _packed(model, _metadata(content, metadata))
    except _BROKEN as error:  # in a part read_model does not look at
        raise ModelError(f"the .tflite file is damaged: {error}", "Convert it, or copy it, once more.") from error
    return _with_labels(packed, metadata.labels)


def read_metadata(data: bytes) -> TfliteMetadata | None:
    """Read the metadata of a .tflite; None when it has none.

    Raises:
        ModelError: the model or its metadata is damaged, or the label file is not in it.
    """
    buffer = read_model(data).metadata.get(ENTRY)
    if buffer is None:
        return None
    raw = buffer.tobytes()
    if raw[4:8] != METADATA_IDENTIFIER:
        raise ModelError("the model's metadata is of a version nobody knows", "Write it once more.")
    try:
        return _read(raw, data)
    except _BROKEN as error:
        raise ModelError(f"the model's metadata is damaged: {error}", "Write it once more.") from error


def pixel_normalization(
    scale: float, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Turn ``(pixel * scale - mean) / std``, as bundles declare it, into mean and std on pixels of 0 to 255."""
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def uint8_pixel_error(model: TfliteModel, mean: Sequence[float], std: Sequence[float]) -> float:
    """How far a uint8 input is from the pixels themselves, in levels of 0 to 255, at the worst pixel and channel.

    MediaPipe copies pixels into a uint8 input whatever the normalisation says.  Up to about 1 that is right;
    more means that such a reader computes something else than the bundle.

    Raises:
        ModelError: the first input is not quantised uint8.
    """
    tensor = model.inputs[0] if model.inputs else None
    if tensor is None or tensor.dtype != "uint8" or len(tensor.scales) != 1 or not tensor.scales[0] > 0:
        raise ModelError("the model's input is not quantised uint8", "Ask for uint8 input.")
    pixels = np.arange(256.0)[:, None]
    real = (pixels - np.asarray(mean, float)) / np.asarray(std, float)
    levels = np.clip(np.round(real / tensor.scales[0]) + tensor.zero_points[0], 0, 255)
    return float(np.abs(levels - pixels).max())


def _check(model: TfliteModel, metadata: TfliteMetadata) -> None:
    faults = []
    if not model.inputs or not model.outputs:
        faults.append("the model has no input or no output")
    if placement(model).compiled:
        faults.append("the model is compiled already: write metadata first, edgetpu_compiler keeps it")
    if metadata.color not in COLORS:
        faults.append(f"the standard has no colour order {metadata.color!r}, only rgb and gray")
    channels = model.inputs[0].shape[-1] if model.inputs and model.inputs[0].shape else 1
    for what, values in (("mean", metadata.mean), ("std", metadata.std)):
        if len(values) not in (1, channels):
            faults.append(f"{what} has {len(values)} values for {channels} channels")
    if not all(abs(value) < LARGEST for value in (*metadata.mean, *metadata.std)) or not all(
        abs(value) > SMALLEST_STD for value in metadata.std
    ):
        faults.append(f"mean and std must be numbers below {LARGEST:g}, and std not 0")
    if not all(abs(value) < LARGEST for value in (metadata.minimum, metadata.maximum)):
        faults.append(f"the output's range must be numbers below {LARGEST:g}")
    faults += _label_faults(model, metadata.labels)
    if faults:
        raise ConversionError(
            f"TFLite metadata cannot be written: {'; '.join(faults)}", "Correct this, or leave the metadata out."
        )


def _label_faults(model: TfliteModel, labels: tuple[str, ...]) -> list[str]:
    faults = [f"the label {label!r} has a line break" for label in labels if "\n" in label or "\r" in label]
    width = model.outputs[0].shape[-1] if model.outputs and model.outputs[0].shape else 0
    if labels and len(labels) != width:
        faults.append(f"{len(labels)} labels for {width} values of the output")
    return faults


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose bytes are aligned, because kernels read them in place; generated code packs them anywhere."""

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated code's name
        data = None if self.data is None else bytes(bytearray(self.data))
        if data is not None:
            builder.Prep(ALIGNMENT, len(data))
            vector = builder.CreateByteVector(data)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def _packed(model: bytes, metadata: bytes) -> bytes:
    file = schema.ModelT.InitFromPackedBuf(model, 0)
    if any(buffer.offset > 1 for buffer in file.buffers or ()):
        raise ConversionError(
            "a model with weights behind the flatbuffer cannot be given metadata", "Leave it out."
        )
    file.buffers = [_AlignedBuffer(b.data) for b in file.buffers or [schema.BufferT()]]
    file.metadata = file.metadata or []
    entry = next((m for m in file.metadata if m.name == ENTRY.encode()), None)
    if entry is None:
        entry = schema.MetadataT(name=ENTRY.encode(), buffer=len(file.buffers))
        file.metadata.append(entry)
        file.buffers.append(_AlignedBuffer())
    file.buffers[entry.buffer].data = np.frombuffer(metadata, np.uint8)
    builder = flatbuffers.Builder(len(model) + 4096)
    builder.Finish(file.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _with_labels(model: bytes, labels: tuple[str, ...]) -> bytes:
    if not labels:
        return model
    stream = io.BytesIO(model)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:  # readers map it: never compressed
        entry = zipfile.ZipInfo(LABELS, (1980, 1, 1, 0, 0, 0))
        entry.create_system, entry.external_attr = 3, 0o644 << 16  # else they tell the host's system
        archive.writestr(entry, "".join(f"{label}\n" for label in labels))
    return stream.getvalue()


def _metadata(model: TfliteModel, metadata: TfliteMetadata) -> bytes:
    builder = flatbuffers.Builder(1024)
    inputs = [_input(builder, model.inputs[0], metadata)]
    inputs += [_table(builder, {0: _string(builder, t.name)}) for t in model.inputs[1:]]
    outputs = [_output(builder, metadata)]
    outputs += [_table(builder, {0: _string(builder, t.name)}) for t in model.outputs[1:]]
    graph = _table(builder, {2: _vector(builder, inputs), 3: _vector(builder, outputs)})
    root = {
        0: _string(builder, metadata.name),
        1: _string(builder, metadata.description),
        3: _vector(builder, [graph]),
        7: _string(builder, PARSER_VERSION),
    }
    builder.Finish(_table(builder, root), file_identifier=METADATA_IDENTIFIER)
    return bytes(builder.Output())


def _input(builder: Any, tensor: TfliteTensor, metadata: TfliteMetadata) -> int:
    properties = {}
    if len(tensor.shape) == 4 and min(tensor.shape) > 0:
        builder.StartObject(2)
        builder.PrependUint32Slot(0, tensor.shape[2], 0)
        builder.PrependUint32Slot(1, tensor.shape[1], 0)
        properties[1] = builder.EndObject()
    image = _table(builder, properties, {0: COLORS[metadata.color]})
    mean, std = _alike(metadata.mean, metadata.std)
    options = _table(builder, {0: _floats(builder, mean), 1: _floats(builder, std)})
    unit = _table(builder, {1: options}, {0: NORMALIZATION_OPTIONS})
    low, high = _input_range(tensor, np.array(mean), np.array(std))
    fields = {
        0: _string(builder, metadata.input_name),
        3: _table(builder, {1: image}, {0: IMAGE_PROPERTIES}),
        4: _vector(builder, [unit]),
        5: _table(builder, {0: _floats(builder, high), 1: _floats(builder, low)}),
    }
    return _table(builder, fields)


def _output(builder: Any, metadata: TfliteMetadata) -> int:
    high, low = _floats(builder, [metadata.maximum]), _floats(builder, [metadata.minimum])
    fields = {0: _string(builder, metadata.output_name), 5: _table(builder, {0: high, 1: low})}
    if metadata.labels:
        file = _table(builder, {0: _string(builder, LABELS)}, {2: TENSOR_AXIS_LABELS})
        fields[6] = _vector(builder, [file])
    return _table(builder, fields)


def _input_range(tensor: TfliteTensor, mean: np.ndarray, std: np.ndarray) -> tuple[Any, Any]:
    if tensor.dtype in ("int8", "uint8"):
        limits = np.iinfo(tensor.dtype)
        return [limits.min], [limits.max]
    ends = np.array([(0 - mean) / std, (255 - mean) / std])
    return ends.min(axis=0), ends.max(axis=0)


def _alike(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """One value each where that says the same, which is all MediaPipe takes; else equally many."""
    if len(set(mean)) == len(set(std)) == 1:
        return [mean[0]], [std[0]]
    count = max(len(mean), len(std))
    return list(mean) * (count // len(mean)), list(std) * (count // len(std))


def _table(builder: Any, offsets: dict[int, int], codes: dict[int, int] | None = None) -> int:
    """A table of offsets and of one-byte enumerations by field number."""
    builder.StartObject(max((*offsets, *(codes or {})), default=-1) + 1)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, code in (codes or {}).items():
        builder.PrependUint8Slot(slot, code, 0)
    return int(builder.EndObject())


def _string(builder: Any, text: str) -> int:
    return int(builder.CreateString(text))


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, values: Any) -> int:
    return int(builder.CreateNumpyVector(np.asarray(values, "<f4")))


def _read(raw: bytes, data: bytes) -> TfliteMetadata:
    root = _View(raw, int.from_bytes(raw[:4], "little"))
    graph = root.tables(3)[0]
    source, target = graph.tables(2)[0], graph.tables(3)[0]
    unit = next((u for u in source.tables(4) if u.byte(0) == NORMALIZATION_OPTIONS), None)
    options = unit.table(1) if unit else None
    content = source.table(3)
    image = content.table(1) if content and content.byte(0) == IMAGE_PROPERTIES else None
    stats = target.table(5)
    files = [f.text(0) for f in target.tables(6) if f.byte(2) == TENSOR_AXIS_LABELS]
    return TfliteMetadata(
        name=root.text(0),
        description=root.text(1),
        input_name=source.text(0),
        mean=options.floats(0) if options else (),
        std=options.floats(1) if options else (),
        labels=_labels(data, files[0]) if files else (),
        output_name=target.text(0),
        color={code: color for color, code in COLORS.items()}.get(image.byte(0) if image else 0, ""),
        minimum=next(iter(stats.floats(1) if stats else ()), 0.0),
        maximum=next(iter(stats.floats(0) if stats else ()), 1.0),
    )


class _View:
    """A table at a position of a flatbuffer, its fields by number; an offset that leads nowhere raises."""

    def __init__(self, raw: bytes, position: int) -> None:
        if not 0 <= position <= len(raw) - 4:
            raise ValueError(f"nothing lies at {position}")
        self.raw, self.view = raw, flatbuffers.table.Table(raw, position)

    def byte(self, field: int) -> int:
        offset = self.view.Offset(4 + 2 * field)
        return int(self.view.Get(number_types.Uint8Flags, self.view.Pos + offset)) if offset else 0

    def text(self, field: int) -> str:
        offset = self.view.Offset(4 + 2 * field)
        return self.view.String(self.view.Pos + offset).decode("utf-8") if offset else ""

    def table(self, field: int) -> _View | None:
        offset = self.view.Offset(4 + 2 * field)
        return _View(self.raw, self.view.Indirect(self.view.Pos + offset)) if offset else None

    def tables(self, field: int) -> list[_View]:
        offset = self.view.Offset(4 + 2 * field)
        if not offset:
            return []
        start, count = self.view.Vector(offset), self.view.VectorLen(offset)
        if start + 4 * count > len(self.raw):
            raise ValueError("a list is longer than the metadata")
        return [_View(self.raw, self.view.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, field: int) -> tuple[float, ...]:
        offset = self.view.Offset(4 + 2 * field)
        if not offset:
            return ()
        return tuple(self.view.GetVectorAsNumpy(number_types.Float32Flags, offset).tolist())


def _labels(data: bytes, file: str) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(file).file_size > MOST_LABEL_BYTES:
                raise ValueError("it is too large")
            text = archive.read(file).decode("utf-8")
    except _BROKEN_ZIP as error:
        raise ModelError(f"the label file {file!r} inside the model: {error}", "Write it once more.") from error
    return tuple(text.removesuffix("\n").split("\n"))
