"""The manifest: everything a device has to know about a bundle, read from JSON without trusting it.

``manifest.json`` is the contract between the converter (which writes it), the deployer (which moves what it
lists) and the runtime (which obeys it).  Reading collects every problem with its path before it complains;
an unknown key is a problem, because a typing error that is silently ignored surfaces as a wrong result.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from edgeferry_runtime.errors import ManifestError, SchemaError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.strict_json import REBUILD, parse_json

__all__ = [
    "BINS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Baseline",
    "FileEntry",
    "Golden",
    "Histogram",
    "Manifest",
    "Quantization",
    "Requires",
    "TensorSpec",
    "Tolerance",
    "Variant",
]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
# The formats of pixels.FORMATS, which cannot be imported here: reading a manifest needs no numpy.
GOLDEN_COLORS = ("bgr", "rgb", "gray", "i420", "nv12", "jpeg")
# "int8-mixed" is int8 with some layers kept float, "dynamic" int8 weights with float arithmetic.
SCHEMES = ("int8", "int8-mixed", "int16x8", "dynamic", "float16", "float32")
BACKENDS = ("ai-edge-litert", "tflite-runtime")
ARCHITECTURES = ("x86_64", "aarch64", "armv7l", "arm64", "amd64")
BINS = 20  # of a histogram: 0 to 0.05, ..., 0.95 to 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# One folder deep, plain ASCII, no leading dot: the same file on every file system a board or a
# workstation has, and never outside the folder it is joined to.
_MEMBER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,99}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?\Z", re.IGNORECASE)


def is_member_name(name: str) -> bool:
    """Whether ``name`` may name a member of a bundle on every system."""
    return bool(_MEMBER.match(name)) and not any(_WINDOWS_DEVICES.match(part) for part in name.split("/"))


@dataclass(frozen=True)
class FileEntry:
    """One member of the bundle: its size in bytes and the SHA-256 of its bytes, in hex."""

    size: int
    sha256: str

    @classmethod
    def read(cls, fields: Fields) -> FileEntry:
        return cls(
            size=fields.integer("size", minimum=0),
            sha256=fields.text("sha256", pattern=_SHA256, means="64 hexadecimal digits"),
        )


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation, ``real = scale * (q - zero_point)``, per tensor or along one axis.

    Source: TFLite 8-bit quantization specification.  Per tensor there is one scale and one zero point and
    ``axis`` is None.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None

    @classmethod
    def read(cls, fields: Fields) -> Quantization:
        scales = fields.numbers("scales", minimum_length=1)
        zero_points = fields.integers("zero_points", minimum_length=1)
        axis = fields.optional_integer("axis", minimum=0)
        if len(scales) != len(zero_points):
            fields.problem("zero_points", "has {} values for {} scales".format(len(zero_points), len(scales)))
        if axis is None and len(scales) > 1:
            fields.problem("axis", "is missing: {} scales need the axis they run along".format(len(scales)))
        if any(scale <= 0 for scale in scales):
            fields.problem("scales", "must all be greater than 0")
        return cls(scales, zero_points, axis)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a variant.

    Attributes:
        name: what people call it (the model's signature).
        tensor: the name of the tensor inside the .tflite file; bound by this, never by position.
        shape: all dimensions fixed, batch 1 first.
        dtype: one of ``DTYPES``.
        layout: "NHWC" for images, "" where no layout is meant.
        quantization: None for tensors that hold plain numbers.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""
    quantization: Quantization | None = None

    @classmethod
    def read(cls, fields: Fields) -> TensorSpec:
        return cls(
            name=fields.text("name"),
            tensor=fields.text("tensor"),
            shape=fields.integers("shape", minimum=1, maximum=1 << 28),
            dtype=fields.choice("dtype", DTYPES),
            layout=fields.choice("layout", ("", "NHWC"), default=""),
            quantization=fields.optional_part("quantization", Quantization.read),
        )


@dataclass(frozen=True)
class Tolerance:
    """How far a device's golden outputs may be from the workstation's, in real (dequantised) units.

    Both figures are derived from the quantisation error the converter measured on held-out images: a device
    that differs from the workstation by more than the variant differs from the float model runs another model.

    Attributes:
        max_abs: largest allowed absolute difference of any value.
        rms: largest allowed root mean square of all differences.
    """

    max_abs: float
    rms: float

    @classmethod
    def read(cls, fields: Fields) -> Tolerance:
        return cls(max_abs=fields.number("max_abs", above=0.0), rms=fields.number("rms", above=0.0))


@dataclass(frozen=True)
class Variant:
    """One .tflite file of the bundle and what may run it.

    Attributes:
        name: unique within the bundle, "int8".
        file: the member that holds the model.
        scheme: quantisation scheme, one of ``SCHEMES``.
        delegate: "" for the interpreter's own kernels (XNNPACK where it has it), else the delegate's name.
        backends: interpreters that may run it, preferred first.
        inputs, outputs: tensors by name.
        golden: output name -> member with this variant's outputs for all golden frames.
        tolerance: output name -> tolerance of its golden outputs.
        input_sha256: of the input tensor that each golden frame becomes, then of the one that
            ``golden.probe_frame`` becomes: preprocessing must give the same bytes on every device.  Empty
            where the declared kernel promises less.
    """

    name: str
    file: str
    scheme: str
    delegate: str
    backends: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: dict[str, str]
    tolerance: dict[str, Tolerance]
    input_sha256: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> Variant:
        variant = cls(
            name=fields.text("name", pattern=_NAME, means="lower-case letters, digits, '.', '_' and '-'"),
            file=fields.text("file"),
            scheme=fields.choice("scheme", SCHEMES),
            delegate=fields.choice("delegate", ("", "edgetpu"), default=""),
            backends=fields.choices("backends", BACKENDS),
            inputs=fields.parts("inputs", TensorSpec.read, minimum_length=1),
            outputs=fields.parts("outputs", TensorSpec.read, minimum_length=1),
            golden=fields.texts_by_name("golden"),
            tolerance=fields.parts_by_name("tolerance", Tolerance.read),
            input_sha256=fields.texts("input_sha256"),
        )
        for value in variant.input_sha256:
            if not _SHA256.match(value):
                fields.problem("input_sha256", "{!r} is not 64 hexadecimal digits".format(value))
        names = [spec.name for spec in variant.outputs]
        for key, table in (("golden", variant.golden), ("tolerance", variant.tolerance)):
            if sorted(table) != sorted(names):
                fields.problem(key, "must name exactly the outputs {}".format(", ".join(names)))
        for key, specs in (("inputs", variant.inputs), ("outputs", variant.outputs)):
            if len({spec.name for spec in specs}) != len(specs):
                fields.problem(key, "has two tensors of one name")
        return variant


@dataclass(frozen=True)
class Golden:
    """Inputs whose outputs are known: a device replays them before it trusts a release.

    A model behind a declared preprocessing has frames; any other has the real numbers of its inputs.

    Attributes:
        count: how many there are.
        color: format of the stored frames, one of ``pixels.FORMATS``.
        frames: members: of format "jpeg" a JPEG file each, else a uint8 array of the format's shape as .npy file.
        inputs: input name -> member with real numbers [count, ...], for models without preprocessing.
        reference: output name -> member with the float model's outputs, float32 [count, ...].
    """

    count: int
    color: str
    frames: tuple[str, ...]
    inputs: dict[str, str]
    reference: dict[str, str]

    @classmethod
    def read(cls, fields: Fields) -> Golden:
        golden = cls(
            count=fields.integer("count", minimum=8, maximum=1024),
            color=fields.choice("color", GOLDEN_COLORS, default="bgr"),
            frames=fields.texts("frames"),
            inputs=fields.texts_by_name("inputs"),
            reference=fields.texts_by_name("reference"),
        )
        if golden.frames and len(golden.frames) != golden.count:
            fields.problem("frames", "has {} entries, count is {}".format(len(golden.frames), golden.count))
        return golden


@dataclass(frozen=True)
class Requires:
    """What a device must have; empty or zero where it does not matter.

    Attributes:
        arch: machine names as ``uname -m`` prints them.
        min_glibc: "2.34".
        min_ram_mb: MiB.
        accelerator: "" or "edgetpu".
    """

    arch: tuple[str, ...]
    min_glibc: str
    min_ram_mb: int
    accelerator: str

    @classmethod
    def read(cls, fields: Fields) -> Requires:
        return cls(
            arch=fields.choices("arch", ARCHITECTURES, minimum_length=0),
            min_glibc=fields.text(
                "min_glibc", pattern=re.compile(r"(\d+\.\d+)?\Z"), means='a version such as "2.34"'
            ),
            min_ram_mb=fields.integer("min_ram_mb", minimum=0),
            accelerator=fields.choice("accelerator", ("", "edgetpu")),
        )


@dataclass(frozen=True)
class Histogram:
    """How numbers from 0 to 1 lay.

    Attributes:
        mean: of the numbers.
        counts: how many lay in each of ``BINS`` bins of equal width, the lowest first; 1 is in the last.
    """

    mean: float
    counts: tuple[int, ...]

    @classmethod
    def read(cls, fields: Fields) -> Histogram:
        histogram = cls(
            mean=fields.number("mean", minimum=0.0, maximum=1.0),
            counts=fields.integers("counts", minimum_length=BINS, minimum=0, maximum=1 << 40),
        )
        if len(histogram.counts) > BINS:
            fields.problem("counts", "has {} entries, must have {}".format(len(histogram.counts), BINS))
        return histogram


@dataclass(frozen=True)
class Baseline:
    """What was normal while the model was converted: what a device sees is compared with it.

    Attributes:
        brightness: of the pictures that calibrated and judged, as the model sees them, black 0 and white 1; None
            for a model that takes no picture.
        confidence: best score of the first variant's answers to what it was judged by; None for tasks without.
    """

    brightness: Histogram | None = None
    confidence: Histogram | None = None

    @classmethod
    def read(cls, fields: Fields) -> Baseline:
        return cls(
            brightness=fields.optional_part("brightness", Histogram.read),
            confidence=fields.optional_part("confidence", Histogram.read),
        )


@dataclass(frozen=True)
class Manifest:
    """A bundle's contents and meaning; see the field types for each part.

    Attributes:
        name: what the bundle is called on the device.
        version: content version, the SHA-256 of the canonical manifest without this field; since the manifest
            holds the hash of every member, two bundles with one version are the same bytes.
        profile: name and values of the device profile that was used (compiled away: devices parse none).
        preprocessing: None for a model that takes no picture, or several inputs: its inputs come as tensors.
        files: every member but the manifest itself.
        provenance: where it came from: source hash, calibration hash, tool versions, recipe, gate results.
        baseline: what was normal; None in bundles that say nothing of it.
    """

    name: str
    profile: dict[str, Any]
    requires: Requires
    preprocessing: Preprocessing | None
    postprocessing: Postprocessing
    variants: tuple[Variant, ...]
    golden: Golden
    files: dict[str, FileEntry]
    provenance: dict[str, Any]
    version: str = ""
    schema_version: int = SCHEMA_VERSION
    baseline: Baseline | None = None

    @classmethod
    def from_bytes(cls, data: bytes, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check a manifest.

        Args:
            data: the bytes of manifest.json.
            where: the file, for messages.

        Raises:
            SchemaError: written by a newer edgeferry.
            ManifestError: anything else that breaks the contract, every problem listed.
        """
        value = parse_json(data, where)
        if not isinstance(value, dict):
            raise ManifestError("{}: is not a JSON object".format(where), REBUILD)
        schema = value.get("schema_version")
        if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA_VERSION:
            raise SchemaError(
                "{}: has schema version {}, this edgeferry-runtime reads up to {}".format(
                    where, schema, SCHEMA_VERSION
                ),
                "Install a newer runtime: pip install --upgrade edgeferry-runtime",
            )
        fields = Fields(value)
        manifest = cls.read(fields)
        problems = fields.finish() or _cross_check(manifest)
        if not problems and manifest.version != content_version(value):
            problems = ["version: does not match the contents, the manifest was changed after it was written"]
        if problems:
            raise ManifestError(
                "{}: breaks the bundle contract:\n    {}".format(where, "\n    ".join(problems)),
                REBUILD,
                tuple(problems),
            )
        return manifest

    @classmethod
    def read(cls, fields: Fields) -> Manifest:
        return cls(
            schema_version=fields.integer("schema_version", minimum=1, maximum=SCHEMA_VERSION),
            name=fields.text("name", pattern=_NAME, means="lower-case letters, digits, '.', '_' and '-'"),
            version=fields.text("version", pattern=_SHA256, means="64 hexadecimal digits"),
            profile=fields.table("profile"),
            requires=fields.part("requires", Requires.read),
            preprocessing=fields.optional_part("preprocessing", Preprocessing.read),
            postprocessing=fields.part("postprocessing", Postprocessing.read),
            variants=fields.parts("variants", Variant.read, minimum_length=1),
            golden=fields.part("golden", Golden.read),
            files=fields.parts_by_name("files", FileEntry.read),
            provenance=fields.table("provenance"),
            baseline=fields.optional_part("baseline", Baseline.read),
        )

    def to_bytes(self) -> bytes:
        """The manifest as it is stored: canonical, readable JSON that carries its own version."""
        value = asdict(self)
        if self.baseline is None:
            del value["baseline"]  # as before there was one: the same contents, the same version
        value["version"] = content_version(value)
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def content_version(value: dict[str, Any]) -> str:
    """SHA-256 in hex of a manifest's canonical JSON without its ``version`` field."""
    rest = {key: part for key, part in value.items() if key != "version"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _cross_check(manifest: Manifest) -> list[str]:
    """Problems between parts that are each well formed."""
    problems = []
    for name in manifest.files:
        if not is_member_name(name) or name == MANIFEST_NAME:
            problems.append("files.{}: is not a name a member may have".format(name))
    if len({name.lower() for name in manifest.files}) != len(manifest.files):
        problems.append("files: two names differ only in case, which some file systems cannot hold")
    named = {"golden.frames[{}]".format(i): member for i, member in enumerate(manifest.golden.frames)}
    named.update({"golden.inputs." + name: member for name, member in manifest.golden.inputs.items()})
    named.update({"golden.reference." + output: member for output, member in manifest.golden.reference.items()})
    if manifest.postprocessing.labels:
        named["postprocessing.labels"] = manifest.postprocessing.labels
    inputs = {spec.name for spec in manifest.variants[0].inputs}
    outputs = {spec.name for spec in manifest.variants[0].outputs}
    for i, variant in enumerate(manifest.variants):
        named["variants[{}].file".format(i)] = variant.file
        named.update(
            {"variants[{}].golden.{}".format(i, output): member for output, member in variant.golden.items()}
        )
        if len(variant.input_sha256) not in (0, len(manifest.golden.frames) + 1):
            problems.append("variants[{}].input_sha256: needs one hash a golden frame and one more".format(i))
        for key, specs, wanted in (("inputs", variant.inputs, inputs), ("outputs", variant.outputs, outputs)):
            if {spec.name for spec in specs} != wanted:
                problems.append("variants[{}].{}: differ in name from those of variants[0]".format(i, key))
    problems += [
        "{}: names {!r}, which is not in files".format(p, m) for p, m in named.items() if m not in manifest.files
    ]
    names = [variant.name for variant in manifest.variants]
    if len(set(names)) != len(names):
        problems.append("variants: two have the same name")
    if set(manifest.golden.reference) != outputs:
        problems.append("golden.reference: must name exactly the outputs {}".format(", ".join(sorted(outputs))))
    for role, output in manifest.postprocessing.outputs.items():
        if output not in outputs:
            problems.append("postprocessing.outputs.{}: {!r} is no output".format(role, output))
    if manifest.preprocessing is not None and (
        len(inputs) != 1 or not manifest.golden.frames or manifest.golden.inputs
    ):
        problems.append("golden: a model with preprocessing has one input and golden frames")
    if manifest.preprocessing is None and (set(manifest.golden.inputs) != inputs or manifest.golden.frames):
        problems.append("golden.inputs: must name exactly the inputs {}".format(", ".join(sorted(inputs))))
    return problems
