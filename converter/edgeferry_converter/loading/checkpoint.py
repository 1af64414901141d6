"""``tf.train.Checkpoint`` files, written over Keras 3 or Keras 2 models, put into what a builder returns."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.keras_source import KerasSource, check_finite
from edgeferry_converter.loading.restoring import Entry, Matching, match, mismatch
from edgeferry_converter.loading.source import LoadOptions, first_line, hash_files
from edgeferry_converter.loading.user_code import build_model

__all__ = ["checkpoint_prefix", "finite_checkpoint", "load_checkpoint"]

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
COUNTER = "save_counter" + VALUE


def checkpoint_prefix(path: Path) -> Path | None:
    """The prefix that TensorFlow calls a checkpoint by, or None.

    Args:
        path: the prefix, one of its .index and .data files, or a folder: of checkpoints (the latest is taken), or
            a SavedModel (its variables).
    """
    if path.is_dir():
        if (path / "variables" / "variables.index").is_file():
            return path / "variables" / "variables"
        listed = _latest(path / "checkpoint")
        return listed if listed is not None and _index(listed).is_file() else None
    if path.name == "checkpoint" and path.is_file():
        return checkpoint_prefix(path.parent)
    prefix = path.with_name(re.sub(r"\.(index|data-[0-9]+-of-[0-9]+)$", "", path.name))
    return prefix if _index(prefix).is_file() else None


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _latest(file: Path) -> Path | None:
    """What the small text file beside checkpoints names; TensorFlow's own reader needs TensorFlow."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    named = re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE)
    # An absolute path of the machine that trained it means the file of that name here.
    return file.parent / Path(named.group(1)).name if named else None


def load_checkpoint(path: Path, options: LoadOptions) -> KerasSource:
    """Build the architecture, then restore every variable from the checkpoint.

    Raises:
        OptionError: there is no builder of that name.
        ModelError: no builder is given, the builder fails, the checkpoint is damaged, or it does not feed every
            variable.
    """
    prefix = checkpoint_prefix(path)
    if prefix is None:
        raise ModelError(f"{path}: is no checkpoint", "Give its prefix: the .index file without the ending.")
    if options.builder is None:
        raise ModelError(
            f"{path}: is a checkpoint: weights without a model's architecture",
            "Say what builds the model: --builder module:function.",
        )
    values = _read(prefix, path)
    model = build_model(options.builder)
    entries = [Entry(name, tuple(value.shape)) for name, value in values.items() if value.dtype.kind in "fiuV"]
    matching, root = _match(model, entries, values, prefix, path)
    matching.check(path, options.strict)
    if root is None:
        for variable, entry in matching.pairs:
            if entry is not None:
                variable.assign(values[entry.name])
    else:
        _restore(model, prefix, root)
    check_finite(model, path)
    files = [(file.name, file) for file in prefix.parent.glob(prefix.name + ".*") if _belongs(file, prefix)]
    return KerasSource(model, path, "checkpoint", hash_files(files), options)


def _belongs(file: Path, prefix: Path) -> bool:
    return re.fullmatch(r"\.(index|data-[0-9]+-of-[0-9]+)", file.name[len(prefix.name) :]) is not None


def finite_checkpoint(prefix: Path, path: Path) -> None:
    """Refuse a checkpoint whose variables are no numbers.

    Raises:
        ModelError: it is damaged, or holds NaN or infinity.
    """
    values = {n: v for n, v in _read(prefix, path).items() if v.dtype.kind == "f"}
    bad = [name.removesuffix(VALUE) for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise ModelError(
            f"{path}: weights hold NaN or infinity: {', '.join(bad[:3])}",
            "The training diverged; use an earlier checkpoint.",
        )


def _read(prefix: Path, path: Path) -> dict[str, np.ndarray]:
    """Every array by its key; reading all of them proves their checksums."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        values = {name: np.asarray(reader.get_tensor(name)) for name in names}
    except Exception as error:  # TensorFlow's own errors of several families, ValueError, RuntimeError
        raise ModelError(
            f"{path}: the checkpoint is damaged: {first_line(error)}",
            "Copy the .index and all .data files again.",
        ) from None
    return {name: value for name, value in values.items() if name not in (GRAPH, COUNTER)}


def _match(
    model: Any, entries: list[Entry], values: dict[str, np.ndarray], prefix: Path, path: Path
) -> tuple[Matching, str | None]:
    """The best matching, and under which name the model hangs in the checkpoint (None: matched by layers)."""
    best: tuple[Matching, str | None] | None = None
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        for root in _roots(entries):

            def restore(numbers: Sequence[int], root: str = root) -> None:
                numbered = Path(folder) / "numbered"
                _write_numbered(prefix, numbered, entries, values, numbers)
                _restore(model, numbered, root)

            try:
                found = match(model, entries, restore)
            except Exception as error:  # a shape that does not fit raises ValueError, others something else
                raise mismatch(model, entries, path, first_line(error)) from error
            if best is None or len(found.missing) < len(best[0].missing):
                best = found, root
            if not found.missing:
                return found, root
    legacy = _match_keras2(model, entries)
    if best is None or len(legacy.missing) < len(best[0].missing):
        best = legacy, None
    return best


def _roots(entries: list[Entry]) -> list[str]:
    """Where the model may hang: it is the root itself (""), or an attribute of the Checkpoint."""
    tops = {entry.name.split("/")[0] for entry in entries}
    own = sorted(top for top in tops if not re.match(r"_|layer-|layer_with_weights-|variables$|optimizer$", top))
    return ["", *own[:8]]


def _restore(model: Any, prefix: Path, root: str) -> None:
    import tensorflow as tf

    checkpoint = tf.train.Checkpoint(**{root: model}) if root else tf.train.Checkpoint(model)
    checkpoint.read(str(prefix)).expect_partial()


def _write_numbered(
    prefix: Path, copy: Path, entries: list[Entry], values: dict[str, np.ndarray], numbers: Sequence[int]
) -> None:
    import tensorflow as tf

    graph = tf.train.load_checkpoint(str(prefix)).get_tensor(GRAPH)
    arrays = [np.full(e.shape, number, values[e.name].dtype) for e, number in zip(entries, numbers, strict=True)]
    tf.raw_ops.SaveV2(
        prefix=str(copy),
        tensor_names=[GRAPH, *(entry.name for entry in entries)],
        shape_and_slices=[""] * (1 + len(entries)),
        tensors=[tf.constant(graph), *(tf.constant(array) for array in arrays)],
    )


def _match_keras2(model: Any, entries: list[Entry]) -> Matching:
    """Match by layers: Keras 2 numbered those with weights, and Keras 3 looks for other names."""
    marker = "layer_with_weights-0/"
    prefixes = {e.name[: e.name.index(marker)] for e in entries if marker in e.name}
    prefix = min(prefixes, key=len, default="")
    pairs = {id(v): e for v, e in _pair_layers(model, prefix, entries)}
    fed = {entry.name for entry in pairs.values()}
    variables = list(model.variables)
    seeds = sum("seed_generator" in variable.path for variable in variables)
    return Matching(
        tuple((variable, pairs.get(id(variable))) for variable in variables),
        tuple(entry for entry in entries if entry.name not in fed),
        len(variables) - seeds,
    )


def _pair_layers(model: Any, prefix: str, entries: list[Entry]) -> list[tuple[Any, Entry]]:
    pairs: list[tuple[Any, Entry]] = []
    with_weights = [layer for layer in model.layers if layer.weights]
    for i, layer in enumerate(with_weights):
        inside = f"{prefix}layer_with_weights-{i}/"
        if getattr(layer, "layers", None):
            pairs += _pair_layers(layer, inside, entries)
            continue
        stored = [e for e in entries if e.name.startswith(inside) and e.name.endswith(VALUE)]
        for variable in layer.weights:
            entry = _closest(variable, [e for e in stored if _same(variable, e)])
            if entry is not None:
                pairs.append((variable, entry))
                stored.remove(entry)
    return pairs


def _closest(variable: Any, fitting: list[Entry]) -> Entry | None:
    """Layers in layers have several of one name and shape: "backward_layer/cell" is "backward_lstm/lstm_cell"."""
    words = set(re.split(r"[/_]", variable.path))
    shared = [len(words.intersection(re.split(r"[/_]", entry.name.removesuffix(VALUE)))) for entry in fitting]
    if not fitting or shared.count(max(shared)) > 1:
        return None
    return fitting[shared.index(max(shared))]


def _same(variable: Any, entry: Entry) -> bool:
    # Keras 2 called the kernel of a DepthwiseConv2D depthwise_kernel.
    name = entry.name.removesuffix(VALUE).rsplit("/", 1)[-1]
    return variable.name in (name, name.removeprefix("depthwise_")) and tuple(variable.shape) == entry.shape
