"""A bundle opened for the loop: made for this architecture, its accelerator tried first, a substitute at hand."""

from __future__ import annotations

import functools
import logging
from typing import Callable, NamedTuple

from edgeferry_runtime.backend import find_backend, installed_backends
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.delegate import DelegateSpec, parse_delegate, probe_in_child
from edgeferry_runtime.delegated import delegated_share, require_delegate, undelegated_warning
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.manifest import Manifest
from edgeferry_runtime.model import InterpreterFactory, Model, choose_variant, in_process
from edgeferry_runtime.standby import Standby

__all__ = ["Choices", "check_architecture", "open_for_loop", "open_model", "open_warm", "warn_if_undelegated"]

_LOG = logging.getLogger("edgeferry")


class Choices(NamedTuple):
    """What a user may decide about a model, as ``Model.open`` has it, and beyond.

    Attributes:
        require_delegate: the share of operations that must run in a delegate, 0 to 1; None for none.
        any_arch: also run what was made for another architecture, for trying out.
    """

    bundle: str
    variant: str | None = None
    backend: str | None = None
    threads: int | None = None
    delegate: str | None = None
    xnnpack: bool = True
    threshold: float | None = None
    top_k: int | None = None
    require_delegate: float | None = None
    any_arch: bool = False


def open_model(
    choices: Choices, accelerators: list[str] | None = None, make: InterpreterFactory = in_process
) -> Model:
    """Open what was chosen, and hold it to what is required of it.

    Args:
        choices: what to open.
        accelerators: kinds that may be used; None asks the system which are there.
        make: makes the interpreter, in this process or another.

    Raises:
        UsageError, BundleError, BackendError, DependencyError.
    """
    model = Model.open(
        choices.bundle,
        choices.variant,
        choices.backend,
        choices.threads,
        delegate=choices.delegate,
        xnnpack=choices.xnnpack,
        accelerators=accelerators,
        threshold=choices.threshold,
        top_k=choices.top_k,
        make=make,
    )
    try:
        if choices.require_delegate is not None:
            require_delegate(model.interpreter, choices.require_delegate)
    except BaseException:
        model.close()
        raise
    return model


def open_warm(opener: Callable[[], Model]) -> Model:
    """What it opens, run once: what fails at its first invoke is not open, and kernels are set up by then."""
    model = opener()
    try:
        model.warm_up(1)
    except BaseException:
        model.close()
        raise
    return model


def open_for_loop(choices: Choices) -> tuple[Model, Standby | None]:
    """The model to begin with, and what stands by where it depends on an accelerator.

    The accelerator is tried in a child process first: a library of the wrong version ends the process it is
    loaded into.  One that was asked for by name must work; one that only the bundle asks for may come later.

    Raises:
        UsageError, BundleError, BackendError, DependencyError.
    """
    with Bundle.open(choices.bundle) as bundle:
        manifest = bundle.manifest
        check_architecture(manifest, choices.any_arch)
        text = choices.delegate or _wanted(manifest, choices.variant)
        spec = parse_delegate(text) if text else None
        if spec is None or spec.kind == "xnnpack":
            return open_model(choices), None
        probe = functools.partial(_probe, bundle.path, choices, spec)
    preferred = choices._replace(delegate=str(spec))
    standby = Standby(
        open_fallback=functools.partial(
            open_model, choices._replace(delegate=None, require_delegate=None), accelerators=[]
        ),
        open_preferred=functools.partial(open_model, preferred),
        probe=probe,
    )
    reason = probe()
    if reason is None:
        return open_model(preferred), standby
    if choices.delegate or choices.require_delegate is not None:
        raise BackendError(
            "delegate {} cannot be used: {}".format(spec, reason),
            "Leave --delegate and --require-delegate out to run without it until it can.",
        )
    return standby.begin("{} cannot be used: {}".format(spec, reason)), standby


def check_architecture(manifest: Manifest, anyway: bool) -> None:
    """Refuse a bundle that was made for other machines.

    Raises:
        BackendError: this machine is none that the bundle names.
    """
    if not manifest.requires.arch or anyway:
        return
    import platform
    import sys

    here = platform.machine()
    if here == "aarch64" and sys.maxsize <= 2**32:
        here = "armv7l"  # a 32-bit system on a 64-bit kernel: platform tells the kernel's
    if here not in manifest.requires.arch:
        raise BackendError(
            "bundle {} was made for {}, this machine is {}".format(
                manifest.name, " or ".join(manifest.requires.arch), here
            ),
            "Convert it with a profile for this machine, or try it out here all the same with --any-arch.",
        )


def _wanted(manifest: Manifest, name: str | None) -> str:
    """The delegate of the first variant that is for one, "" where none is."""
    variants = [v for v in manifest.variants if name is None or v.name == name]
    return next((v.delegate for v in variants if v.delegate), "")


def _probe(path: str, choices: Choices, spec: DelegateSpec) -> str | None:
    with Bundle.open(path) as bundle:
        found = [find_backend((choices.backend,))] if choices.backend else installed_backends()
        kinds = [spec.kind] if spec.kind == "edgetpu" else []
        variant = choose_variant(bundle.manifest, [b.name for b in found], kinds, choices.variant)
        engine = next(b.name for b in found if b.name in variant.backends)
        return probe_in_child(spec, bundle.file_path(variant.file), engine)


def warn_if_undelegated(model: Model) -> None:
    """Say so, loudly, when an int8 model runs on plain kernels."""
    interpreter = model.interpreter
    warning = undelegated_warning(model.variant.scheme, delegated_share(interpreter), interpreter.backend)
    if warning:
        _LOG.warning("%s", warning)
