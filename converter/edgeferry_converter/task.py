"""Which task a model does: from the labels of the data, the shapes of the outputs, or the user's word."""

from __future__ import annotations

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing

from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.errors import OptionError
from edgeferry_converter.evaluation import scores_kind
from edgeferry_converter.loading.source import SourceModel

__all__ = ["decide_postprocessing"]

DETECTION_THRESHOLD = 0.25  # below it a box is noise to a person; the gate counts from 0.001 as COCO does
DETECTION_BOXES = 100
KEYPOINT_THRESHOLD = 0.3  # below it a keypoint is a guess


def decide_postprocessing(
    source: SourceModel, dataset: Dataset, outputs: dict[str, np.ndarray], task: str | None
) -> Postprocessing:
    """The postprocessing to declare in the bundle.

    Args:
        source: the model.
        dataset: its labels say what the model is for.
        outputs: the float model's for some samples, float32 [n, ...] by name.
        task: the user's word, which goes before everything else.

    Raises:
        OptionError: the task needs outputs the model does not have.
    """
    task = task or dataset.task_hint or _guess(outputs, dataset)
    if task == "raw":
        return Postprocessing("raw")
    if task == "detect":
        return _detection(source, outputs, len(dataset.labels))
    if task == "keypoints":
        return _keypoints(source, outputs, len(dataset.labels))
    name = _only(outputs, task)
    shape = outputs[name].shape
    wanted = {"classify": 2, "regress": 2, "embed": 2, "segment": 4}[task]
    if len(shape) != wanted:
        raise OptionError(
            f"{source.path}: output {name!r} is {[1, *shape[1:]]}, for --task {task} it needs {wanted} dimensions",
            "Name the right --task, or raw to take the outputs as they are.",
        )
    if task == "regress":
        return Postprocessing("regress", {"values": name})
    if task == "embed":
        return Postprocessing("embed", {"embedding": name})
    activation = source.last_activation.get(name, "")
    if task == "segment":
        flat = outputs[name].reshape(-1, shape[-1])
        return Postprocessing("segment", {"mask": name}, scores_kind(activation, flat))
    return Postprocessing("classify", {"scores": name}, scores_kind(activation, outputs[name]))


def _guess(outputs: dict[str, np.ndarray], dataset: Dataset) -> str:
    one = next(iter(outputs.values()))
    return "classify" if len(outputs) == 1 and one.ndim == 2 and dataset.labels else "raw"


def _only(outputs: dict[str, np.ndarray], task: str) -> str:
    if len(outputs) != 1:
        raise OptionError(
            f"the model has {len(outputs)} outputs ({', '.join(outputs)}), a model for --task {task} has one",
            "Convert it with --task raw, which takes all outputs as they are.",
        )
    return next(iter(outputs))


def _detection(source: SourceModel, outputs: dict[str, np.ndarray], classes: int) -> Postprocessing:
    """An SSD's four outputs, told apart by their shapes, or one YOLO head, told apart by its number of columns."""
    common: dict[str, float] = {"top_k": DETECTION_BOXES, "threshold": DETECTION_THRESHOLD}
    if len(outputs) == 4:
        # The operation suppressed overlapping boxes already; nothing overlaps by more than all.
        common["iou_threshold"] = 1.0
        return Postprocessing("detect", _ssd_roles(source, outputs), decoder="ssd", **common)  # type: ignore[arg-type]
    name = _only(outputs, "detect")
    shape = outputs[name].shape
    sides = set(shape[1:])
    for decoder, extra in (("yolo-v8", 4), ("yolo-v5", 5)):
        if len(shape) == 3 and extra + classes in sides:
            values = outputs[name]
            boxes = values[:, :4] if shape[1] == extra + classes else values[:, :, :4]
            unit = "fraction" if float(np.abs(boxes).max(initial=0)) <= 2.0 else "pixels"
            return Postprocessing("detect", {"head": name}, decoder=decoder, box_unit=unit, **common)  # type: ignore[arg-type]
    raise OptionError(
        f"{source.path}: output {name!r} is {[1, *shape[1:]]}, which is no detection head for {classes} classes",
        "A YOLO head has 4 + classes (v8, v11) or 5 + classes (v5) rows or columns; or use --task raw.",
    )


def _ssd_roles(source: SourceModel, outputs: dict[str, np.ndarray]) -> dict[str, str]:
    boxes = [name for name, values in outputs.items() if values.ndim == 3 and values.shape[2] == 4]
    counts = [name for name, values in outputs.items() if values.ndim == 1 or values.size == len(values)]
    flat = [name for name in outputs if name not in boxes and name not in counts]
    if len(boxes) != 1 or len(counts) != 1 or len(flat) != 2:
        shapes = ", ".join(f"{name} {[1, *values.shape[1:]]}" for name, values in outputs.items())
        raise OptionError(f"{source.path}: its outputs ({shapes}) are not those of a detector", "Use --task raw.")
    # Classes are whole numbers; scores hardly ever all are.
    whole = [bool((outputs[name] == np.rint(outputs[name])).all()) for name in flat]
    classes, scores = flat if whole[0] else flat[::-1]
    return {"boxes": boxes[0], "classes": classes, "scores": scores, "count": counts[0]}


def _keypoints(source: SourceModel, outputs: dict[str, np.ndarray], labels: int) -> Postprocessing:
    """MoveNet's two layouts, told apart by their rows: y, x and score, or all of them and a box with its score."""
    name = _only(outputs, "keypoints")
    shape = [1, *outputs[name].shape[1:]]
    if shape[-1] == 3 and (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)):
        decoder, count = "movenet", shape[-2]
    elif len(shape) == 3 and shape[2] >= 8 and shape[2] % 3 == 2:
        decoder, count = "movenet-multipose", (shape[2] - 5) // 3
    else:
        raise OptionError(
            f"{source.path}: output {name!r} is {shape}, which holds no keypoints",
            "One pose is [1, 1, K, 3] or [1, K, 3], several are [1, poses, 3 K + 5]; or use --task raw.",
        )
    if labels not in (0, count):
        raise OptionError(
            f"{source.path}: output {name!r} has {count} keypoints, the data {labels} labels",
            "Labels are the keypoints' names here: give pictures in one folder, without classes.",
        )
    return Postprocessing("keypoints", {"keypoints": name}, threshold=KEYPOINT_THRESHOLD, decoder=decoder)
