"""How much of a model runs in a delegate, and what to say when it is too little."""

from __future__ import annotations

from typing import Sequence

from edgeferry_runtime.backend import Backend, Interpreter, Operation
from edgeferry_runtime.delegate import EIGHT_BIT, default_delegate
from edgeferry_runtime.errors import BackendError, UsageError

__all__ = ["delegated_share", "require_delegate", "share_of", "undelegated_warning"]


def delegated_share(interpreter: Interpreter) -> float | None:
    """The share of the model's operations that run in a delegate, 0 to 1; None where it cannot be known.

    XNNPACK counts.  Operations in the bodies of loops and branches are not looked at.  A file compiled for the
    Edge TPU holds one operation for all that runs there, whatever its size.
    """
    operations = interpreter.operations()
    return None if operations is None else share_of(operations)


def share_of(operations: Sequence[Operation]) -> float:
    """The share of the operations in the file that the "DELEGATE" nodes after them stand for.

    A delegate's node names the tensors it reads and gives.  What lies between them, walked from its outputs
    back, is what it has taken over.
    """
    own = [operation for operation in operations if operation.name != "DELEGATE"]
    producer = {tensor: i for i, operation in enumerate(own) for tensor in operation.outputs}
    taken: set[int] = set()
    for block in operations:
        if block.name != "DELEGATE":
            continue
        reads = set(block.inputs)
        ahead = list(block.outputs)
        while ahead:
            tensor = ahead.pop()
            i = producer.get(tensor)
            if i is None or i in taken or tensor in reads:
                continue
            taken.add(i)
            ahead.extend(own[i].inputs)
    return len(taken) / len(own) if own else 0.0


def require_delegate(interpreter: Interpreter, share: float) -> None:
    """Insist on a share of delegated operations.

    Args:
        share: the least that will do, 0 to 1.

    Raises:
        UsageError: ``share`` is no share.
        BackendError: less is delegated, or nobody can tell.
    """
    if not 0 <= share <= 1:
        raise UsageError("--require-delegate is {}, must be a share from 0 to 1".format(share), "0.9 is 90 %.")
    found = delegated_share(interpreter)
    if found is None:
        raise BackendError(
            "{} does not tell what it delegates".format(interpreter.backend), "Leave --require-delegate out."
        )
    if found < share:
        raise BackendError(
            "{:.0f} % of the operations of {} run in a delegate, {:.0f} % are required".format(
                100 * found, interpreter.model_path, 100 * share
            ),
            "Try ai-edge-litert (--backend) or --delegate xnnpack; for an Edge TPU, a compiled variant with "
            "--delegate edgetpu. `edgeferry-run info` shows the share.",
        )


def undelegated_warning(scheme: str, share: float | None, backend: Backend) -> str | None:
    """What to say, once and loudly, when a delegate runs less than half of an 8-bit model; None: nothing.

    Args:
        scheme: of the variant's quantisation.
        share: what ``delegated_share`` gave.
    """
    if scheme not in EIGHT_BIT or share is None or share >= 0.5:
        return None
    how = "no operation runs" if share == 0 else "only {:.0f} % of the operations run".format(100 * share)
    if default_delegate(scheme, backend) is not None:
        remedy = "add --delegate xnnpack"
    elif backend.name == "tflite-runtime":
        remedy = "install ai-edge-litert where the system is 64-bit"
    else:
        remedy = "XNNPACK is switched off, or does not know these operations"
    return (
        "this {} model runs on the plain kernels of {}, which can be many times slower: {} in a delegate; "
        "{}.".format(scheme, backend, how, remedy)
    )
