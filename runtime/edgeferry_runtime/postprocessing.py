"""Postprocessing as the bundle declares it: how the model's outputs become an answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeferry_runtime.fields import Fields

__all__ = ["BOX_UNITS", "DECODERS", "ROLES", "SCORES", "TASKS", "Postprocessing"]

TASKS = ("classify", "detect", "segment", "keypoints", "regress", "embed", "raw")
# What the numbers of a classifier's output are.  "binary-*": one number, for the second of two classes.
SCORES = ("probabilities", "logits", "binary-probability", "binary-logit")
# How a detector writes its boxes: the four outputs of TFLite's detection post-processing operation, or one head
# with a row (v5: x y w h objectness classes...) or a column (v8: x y w h classes...) a candidate.  How a pose
# estimator writes its keypoints: rows of y x score for one pose, or a row of all that and a box for each pose.
DECODERS = ("", "ssd", "yolo-v5", "yolo-v8", "movenet", "movenet-multipose")
BOX_UNITS = ("pixels", "fraction")
# Which outputs a task reads, by what they are.
ROLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "classify": (("scores",),),
    "detect": (("head",), ("boxes", "classes", "scores", "count")),
    "segment": (("mask",),),
    "keypoints": (("keypoints",),),
    "regress": (("values",),),
    "embed": (("embedding",),),
    "raw": ((),),
}
# Which decoders read an output, by the role that tells them apart.
_DECODERS_OF = {
    "head": ("yolo-v5", "yolo-v8"),
    "boxes": ("ssd",),
    "keypoints": ("movenet", "movenet-multipose"),
}


@dataclass(frozen=True)
class Postprocessing:
    """What happens to the outputs after the model ran.

    Attributes:
        task: one of ``TASKS``; "raw" hands the outputs out as they are.
        outputs: role -> name of the output that plays it, roles as in ``ROLES``.
        scores: what a classifier's numbers are, one of ``SCORES``; for detectors and segmenters whether class
            scores are probabilities or logits.
        labels: member with one label a line in the order of the classes (keypoints, values), "" where there is
            none.
        top_k: how many classes (or boxes, or poses) a result names, at most.
        threshold: classes (or boxes, poses, keypoints) with a lower score, 0 to 1, are left out of the result.
        decoder: how a detector writes its boxes or a pose estimator its keypoints, one of ``DECODERS``; "" for
            other tasks.
        box_unit: of a YOLO head's boxes: "pixels" of the model's input, or "fraction" of its sides.
        iou_threshold: of two boxes that overlap by more (intersection over union), the weaker one goes.
        class_agnostic: boxes of different classes suppress each other as well.
        normalize: an embedding is divided by its Euclidean length.
    """

    task: str
    outputs: dict[str, str] = field(default_factory=dict)
    scores: str = "probabilities"
    labels: str = ""
    top_k: int = 5
    threshold: float = 0.0
    decoder: str = ""
    box_unit: str = "pixels"
    iou_threshold: float = 0.45
    class_agnostic: bool = False
    normalize: bool = True

    @classmethod
    def read(cls, fields: Fields) -> Postprocessing:
        declared = cls(
            task=fields.choice("task", TASKS),
            outputs=fields.texts_by_name("outputs"),
            scores=fields.choice("scores", SCORES, default="probabilities"),
            labels=fields.text("labels", default=""),
            top_k=fields.integer("top_k", default=5, minimum=1, maximum=10_000),
            threshold=fields.number("threshold", default=0.0, minimum=0.0, maximum=1.0),
            decoder=fields.choice("decoder", DECODERS, default=""),
            box_unit=fields.choice("box_unit", BOX_UNITS, default="pixels"),
            iou_threshold=fields.number("iou_threshold", default=0.45, minimum=0.0, maximum=1.0),
            class_agnostic=fields.boolean("class_agnostic", default=False),
            normalize=fields.boolean("normalize", default=True),
        )
        allowed = ROLES.get(declared.task, ())
        if sorted(declared.outputs) not in [sorted(roles) for roles in allowed]:
            words = " or ".join(", ".join(roles) or "no roles" for roles in allowed)
            fields.problem("outputs", "must name {} for task {!r}".format(words, declared.task))
        for role, decoders in _DECODERS_OF.items():
            if role in declared.outputs and declared.decoder not in decoders:
                fields.problem(
                    "decoder", "is {!r}, which does not fit the outputs it reads".format(declared.decoder)
                )
        return declared
