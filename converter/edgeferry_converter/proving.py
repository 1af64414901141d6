"""Proving: make the variants, judge them, and where allowed keep layers float until the gate opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeferry_runtime.postprocessing import Postprocessing

from edgeferry_converter.evaluation import Evaluation, evaluate
from edgeferry_converter.gate import Verdict, judge
from edgeferry_converter.keep_float import keep_as_few_as_needed
from edgeferry_converter.material import Material
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.request import ConversionRequest
from edgeferry_converter.variants import ConvertedVariant, VariantRunner
from edgeferry_converter.workshop import Workshop

__all__ = ["FLOAT", "Proof", "prove"]

FLOAT = QuantizationScheme("float32")


@dataclass(frozen=True)
class Proof:
    """What judging gave.

    Attributes:
        variants: all that were judged; the first is what the others are compared with.
        evaluation: their figures.
        verdicts: of those that go into the bundle, by name, preferred first.
    """

    variants: list[ConvertedVariant]
    evaluation: Evaluation
    verdicts: dict[str, Verdict]

    @property
    def passed(self) -> bool:
        """Whether all of them may leave."""
        return all(verdict.passed for verdict in self.verdicts.values())


def prove(
    request: ConversionRequest,
    material: Material,
    post: Postprocessing,
    workshop: Workshop,
    progress: Progress,
    schemes: Sequence[QuantizationScheme],
    others: Sequence[VariantRunner] = (),
) -> Proof:
    """Judge the variants of some schemes, beside a float32 one.

    Args:
        others: judged only to be compared with.

    Raises:
        ConversionError: a variant cannot be made, or answers NaN.
    """

    def attempt(schemes: Sequence[QuantizationScheme]) -> Proof:
        # A ready file that is packed as it is has nothing to stand beside.
        ready = material.source.tflite_path is not None and list(schemes) == [workshop.ready_scheme()]
        base = [] if ready else [workshop.make(FLOAT)]
        made = base + [v for v in map(workshop.make, schemes) if v not in base]
        runners = [*(workshop.runner(variant) for variant in made), *others]
        samples = progress.track(material.evaluation(), len(material.division.evaluation), "judging")
        labelled = bool(material.judging.task_hint)
        evaluation = evaluate(
            material.source, material.feed, runners, samples, post, material.dataset.labels, labelled
        )
        by_name = {variant.name: variant for variant in made}
        names = [scheme.label for scheme in schemes if scheme.label in by_name]
        verdicts = {name: judge(name, evaluation, request.max_drop, request.seed) for name in names}
        return Proof([*made, *(runner.variant for runner in others)], evaluation, verdicts)

    proof = attempt(schemes)
    if request.auto_keep_float and not proof.passed:
        return keep_as_few_as_needed(proof, list(schemes), attempt, workshop)
    return proof
