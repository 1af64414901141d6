"""Goldens: which held-out samples the bundle carries, and how far a device's answers to them may be off."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from edgeferry_runtime.golden import deviation, probe_frame, tensor_sha256
from edgeferry_runtime.manifest import Tolerance
from edgeferry_runtime.pixels import PLANAR
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.resize import resize
from edgeferry_runtime.tensors import resolution

from edgeferry_converter.data.dataset import FRAME, Sample
from edgeferry_converter.evaluation import Judgement, OutputError, first_outputs
from edgeferry_converter.feeding import COLOR, Feed, delivered_format
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.variants import VariantRunner

__all__ = ["Goldens", "choose_goldens", "golden_numbers", "npy_bytes", "tells_a_dead_model", "tolerances"]

MIN_SAMPLES = 8
MAX_SAMPLES = 16
# Float outputs of one model differ between builds of the interpreter by rounding alone: sums of thousands of
# products in another order.  The allowance is relative to the largest output.
FLOAT_ROUNDING = {"float32": 2.0**-16}
HALF_ROUNDING = 2.0**-11

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Goldens:
    """Samples with everybody's answers.

    Attributes:
        frames: as the board takes them, of format ``color``; empty for a model without frames.
        inputs: input name -> real numbers float32 [samples, ...]; empty for a model with frames.
        reference: output name -> the float model's, float32 [samples, ...].
        outputs: variant name -> output name -> its own, float32 [samples, ...].
        input_sha256: variant name -> hashes of its input tensors, the probe frame's last.
        color: format of the frames, one of ``pixels.FORMATS``.
    """

    frames: tuple[np.ndarray, ...]
    inputs: Outputs
    reference: Outputs
    outputs: dict[str, Outputs] = field(default_factory=dict)
    input_sha256: dict[str, tuple[str, ...]] = field(default_factory=dict)
    color: str = COLOR

    @property
    def count(self) -> int:
        """How many there are."""
        return len(next(iter(self.reference.values())))


def golden_numbers(candidates: Sequence[int], group: Callable[[int], object]) -> list[int]:
    """Which samples: of as many classes as there are, one of each in turn, so that an interpreter that answers the
    same for every input cannot pass.

    Args:
        candidates: the held-out samples.
        group: a sample's class, or None.
    """  # fmt: skip
    queues: dict[object, list[int]] = {}
    for number in candidates:
        queues.setdefault(group(number), []).append(number)
    ordered = [queues[key] for key in sorted(queues, key=str)]
    rounds = [queue[i] for i in range(max(map(len, ordered))) for queue in ordered if i < len(queue)]
    wanted = min(MAX_SAMPLES, max(MIN_SAMPLES, len(queues)))
    # Fewer held-out samples than goldens: some come twice, which harms nothing.
    return [rounds[i % len(rounds)] for i in range(wanted)]


def choose_goldens(
    samples: Iterable[Sample], feed: Feed, source: SourceModel, runners: Sequence[VariantRunner]
) -> Goldens:
    """Everybody's answers to the chosen samples.

    Frames far larger than the model's input are made smaller first, since a bundle travels over slow links.
    """
    chosen = list(samples)
    if feed.declared:
        chosen = [_bounded(sample, feed.declared) for sample in chosen]
        frames, inputs = tuple(feed.delivered(sample)[0] for sample in chosen), {}
    else:
        reals = [feed.real(sample) for sample in chosen]
        frames, inputs = (), {name: np.concatenate([real[name] for real in reals]) for name in reals[0]}
    color = delivered_format(feed.declared) if feed.declared else COLOR
    goldens = Goldens(frames, inputs, first_outputs(source, feed, chosen), color=color)
    for runner in runners:
        answers = [runner(sample) for sample in chosen]
        name = runner.variant.name
        goldens.outputs[name] = {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}
        goldens.input_sha256[name] = _input_hashes(runner, frames, color)
    return goldens


def tolerances(
    judgement: Judgement, runner: VariantRunner, goldens: Goldens, spans: dict[str, float]
) -> dict[str, Tolerance]:
    """How far a device may be from this workstation, from the quantisation error that was measured.

    Another build of the interpreter rounds elsewhere: its answers are off the float model's about as far as this
    one's are, but in other directions.  By the triangle inequality the two then differ by at most twice that
    error, and a device that differs by more lost more than quantisation did.  The error is the larger of that
    over all held-out samples and that over the goldens, which may be harder than the average.  Where
    quantisation lost nothing measurable, a step of the output, or rounding for float outputs, takes its place.

    Args:
        judgement: the error on held-out samples.
        runner: whose outputs they are.
        goldens: what a device will replay.
        spans: largest |value| of each output of the float model.

    Returns:
        By output name.
    """
    rounding = FLOAT_ROUNDING.get(runner.variant.scheme.name, HALF_ROUNDING)
    found = {}
    for spec in runner.outputs:
        golden = OutputError()
        golden.add(goldens.outputs[runner.variant.name][spec.name], goldens.reference[spec.name])
        error = judgement.errors[spec.name]
        # An output that is always 0 has no span; any number above 0 then keeps the tolerance a tolerance.
        step = resolution(spec) or rounding * spans[spec.name] or rounding
        found[spec.name] = Tolerance(
            max_abs=2 * max(error.largest, golden.largest, step), rms=2 * max(error.rms, golden.rms, step)
        )
    return found


def tells_a_dead_model(outputs: Outputs, allowed: dict[str, Tolerance]) -> bool:
    """Whether a device that answers the same for every input is outside the tolerance, as it must be."""
    for name, values in outputs.items():
        constant = np.broadcast_to(values.mean(axis=0), values.shape)
        if not deviation(name, constant, values, allowed[name]).ok:
            return True
    return False


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _bounded(sample: Sample, declared: Preprocessing) -> Sample:
    """At most twice the model's input a side, aspect ratio kept."""
    limit = 2 * max(declared.width, declared.height)
    height, width = sample.frame.shape[:2]
    longest = max(height, width)
    if longest <= limit:
        return sample
    # Planes need two pixels a side.
    size = (max(2, width * limit // longest), max(2, height * limit // longest))
    return replace(sample, inputs={FRAME: resize(sample.frame, *size, kernel="bilinear")})


def _input_hashes(runner: VariantRunner, frames: Sequence[np.ndarray], color: str) -> tuple[str, ...]:
    if runner.preprocessor is None or runner.preprocessor.declared.resize == "bilinear-fast":
        return ()  # bilinear-fast is declared to differ by up to one level between builds of OpenCV
    probe = color if color in PLANAR else COLOR
    fed = [*((pixels, color) for pixels in frames), (probe_frame(probe), probe)]
    return tuple(tensor_sha256(runner.preprocessor(*one)) for one in fed)
