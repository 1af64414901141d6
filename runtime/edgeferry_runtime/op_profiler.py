"""Times of single operations, taken in the interpreter's own calls: neither package's Python offers a profiler.

An interpreter hands every delegate the C structures of tensorflow/lite/core/c/common.h, whose layout external
delegates built elsewhere rely on.  This one takes no operation.  It keeps the context it is shown, and once all
other delegates have had their turn it puts a clock around each node's ``invoke``.  A delegate that reports what
it does inside (XNNPACK does, in whole microseconds) finds a profiler in the context: an object of the C++ class
tflite::Profiler, as compilers for Linux and macOS lay it out.  Tried with tflite-runtime 2.11 and 2.14 and
ai-edge-litert 2.3.  A layout that differs can end the process: use it in a child, as ``op_times`` does.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, Callable

from edgeferry_runtime.backend import Operation
from edgeferry_runtime.errors import BackendError

__all__ = ["OpProfiler", "Probe"]

_OK, _ERROR = 0, 1
_ALLOWS_DYNAMIC_TENSORS = 1  # kTfLiteDelegateFlagsAllowDynamicTensors: leaves the graph open for those that follow
_BUILTIN_DELEGATE = 51  # kTfLiteBuiltinDelegate
# Profiler::EventType of an operation inside a delegate: since 2.12, and before.  Telemetry has others.
_INSIDE = (8, 4)
_pointer = ctypes.c_void_p


class _Context(ctypes.Structure):
    """TfLiteContext, down to the last member that is used."""

    _fields_ = (
        ("tensors_size", ctypes.c_size_t),
        ("get_execution_plan", _pointer),
        ("tensors", _pointer),
        ("impl", _pointer),
        ("resize_tensor", _pointer),
        ("report_error", _pointer),
        ("add_tensors", _pointer),
        ("get_node_and_registration", _pointer),
        ("replace_node_subsets", _pointer),
        ("recommended_num_threads", ctypes.c_int),
        ("get_external_context", _pointer),
        ("set_external_context", _pointer),
        ("allow_fp32_relax_to_fp16", ctypes.c_bool),
        ("profiler", _pointer),
    )


class _Registration(ctypes.Structure):
    """TfLiteRegistration, down to the last member that is used."""

    _fields_ = (
        ("init", _pointer),
        ("free", _pointer),
        ("prepare", _pointer),
        ("invoke", _pointer),
        ("profiling_string", _pointer),
        ("builtin_code", ctypes.c_int32),
        ("custom_name", ctypes.c_char_p),
    )


_Call = ctypes.CFUNCTYPE(ctypes.c_int, _pointer, _pointer)  # prepare of a delegate, invoke of a node
_GetPlan = ctypes.CFUNCTYPE(ctypes.c_int, _pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_int)))
_GetNode = ctypes.CFUNCTYPE(
    ctypes.c_int, _pointer, ctypes.c_int, ctypes.POINTER(_pointer), ctypes.POINTER(ctypes.POINTER(_Registration))
)
_BeginEvent = ctypes.CFUNCTYPE(
    ctypes.c_uint32, _pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
)
_AddEvent = ctypes.CFUNCTYPE(
    None, _pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int64
)
_Nothing = ctypes.CFUNCTYPE(None, _pointer)


class _Delegate(ctypes.Structure):
    """TfLiteDelegate; zeros behind its end, for later versions that look further."""

    _fields_ = (
        ("data", _pointer),
        ("prepare", _pointer),
        ("copy_from_buffer", _pointer),
        ("copy_to_buffer", _pointer),
        ("free_buffer", _pointer),
        ("flags", ctypes.c_int64),
        ("opaque_builder", _pointer),
        ("later", ctypes.c_uint64 * 8),
    )


class Probe:
    """The clock around one node.

    Attributes:
        node: its index.
        custom_name: of a custom operation or a delegate's block, else "".
        delegate: whether it is a delegate's block.
        times_ns: one for each watched invoke.
        inside_us: what the block reported, whole microseconds for each watched invoke, by (place, name).
    """

    def __init__(self, node: int, registration: Any) -> None:
        self.node = node
        self.custom_name = (registration.custom_name or b"").decode("utf-8", "replace")
        self.delegate = registration.builtin_code == _BUILTIN_DELEGATE
        self.times_ns: list[int] = []
        self.inside_us: dict[tuple[int, str], list[int]] = {}
        self._registration = registration
        self._real = registration.invoke
        self._made: dict[str, Any] = {}  # functions the interpreter may call; they must live

    def clock(self) -> None:
        """Put a clock in the place of the node's function."""
        self._put("clocked", self._clocked)

    def follow(self, enter: Callable[[Probe], None]) -> None:
        """Only tell when the node's function begins."""
        self._put("followed", lambda real: self._followed(real, enter))

    def _put(self, kind: str, make: Callable[[Any], Any]) -> None:
        if kind not in self._made:
            self._made[kind] = _Call(make(_Call(self._real)))
        self._registration.invoke = ctypes.cast(self._made[kind], _pointer).value

    def _clocked(self, real: Any) -> Any:
        clock, times = time.perf_counter_ns, self.times_ns

        def call(context: int, node: int) -> Any:
            began = clock()
            status = real(context, node)
            times.append(clock() - began)
            return status

        return call

    def _followed(self, real: Any, enter: Callable[[Probe], None]) -> Any:
        def call(context: int, node: int) -> Any:
            enter(self)
            return real(context, node)

        return call

    def release(self) -> None:
        """Put the node's own function back."""
        self._registration.invoke = self._real


class OpProfiler:
    """A delegate as ``Interpreter(..., delegate=...)`` takes one; it must live as long as the interpreter.

    Args:
        inner: the delegate that does the work, None for none.
        inside: also ask delegates what they do inside, where that can be done.

    Attributes:
        probes: one for each node that runs, in their order, after :meth:`attach`.
    """

    def __init__(self, inner: Any = None, inside: bool = True) -> None:
        self.probes: list[Probe] = []
        self._inner = inner
        self._inside = inside and os.name == "posix"  # other compilers lay the C++ class out in another way
        self._context: Any = None
        self._functions: tuple[int, int] = (0, 0)
        self._running: Probe | None = None
        self._prepare = _Call(self._prepared)
        self._events = self._profiler()
        flags = _ALLOWS_DYNAMIC_TENSORS if inner is None else self._inner_delegate().flags
        self._delegate = _Delegate(prepare=ctypes.cast(self._prepare, _pointer).value, flags=flags)

    def _get_native_delegate_pointer(self) -> int:
        return ctypes.addressof(self._delegate)

    def _inner_delegate(self) -> Any:
        return ctypes.cast(self._inner._get_native_delegate_pointer(), ctypes.POINTER(_Delegate)).contents

    def _prepared(self, context: int, _delegate: int) -> int:
        """The interpreter's one call to a delegate.  Nothing may be raised from here."""
        self._context = ctypes.cast(context, ctypes.POINTER(_Context)).contents
        # Outside this call the context refuses to show nodes; the functions behind it stay what they are.
        self._functions = (self._context.get_execution_plan, self._context.get_node_and_registration)
        self._report(self._inside)
        if self._inner is None:
            return _OK
        inner = self._inner_delegate()
        if not inner.prepare:
            return _ERROR
        return int(_Call(inner.prepare)(context, self._inner._get_native_delegate_pointer()))

    def _report(self, wanted: bool) -> None:
        self._context.profiler = ctypes.addressof(self._events[0]) if wanted else None

    def _profiler(self) -> tuple[Any, ...]:
        """An object of tflite::Profiler: a pointer to its table of virtual functions, and all that must live."""

        def add_event(_self: int, tag: bytes, kind: int, elapsed_us: int, place: int, _graph: int) -> None:
            if self._running is not None and place >= 0 and kind in _INSIDE:
                key = (place, tag.decode("utf-8", "replace"))
                self._running.inside_us.setdefault(key, []).append(elapsed_us)

        nothing, begin, add = _Nothing(lambda _self: None), _BeginEvent(lambda *_: 0), _AddEvent(add_event)
        # Two destructors, BeginEvent, EndEvent twice, AddEvent, and what later versions put behind it.
        functions = [nothing, nothing, begin, nothing, nothing, add] + [nothing] * 10
        table = (_pointer * len(functions))(*(ctypes.cast(function, _pointer).value for function in functions))
        return (_pointer * 8)(ctypes.addressof(table)), table, functions

    def attach(self, operations: list[Operation] | None) -> None:
        """Find the nodes that run; after the interpreter is made.

        Args:
            operations: what ``Interpreter.operations`` tells, to see whether the structures are read rightly.

        Raises:
            BackendError: the interpreter cannot be watched.
        """
        unknown = BackendError("the interpreter does not show its nodes")
        if self._context is None or operations is None:
            raise unknown
        plan = ctypes.POINTER(ctypes.c_int)()
        context = ctypes.addressof(self._context)
        if _GetPlan(self._functions[0])(context, ctypes.byref(plan)) != _OK or not plan:
            raise unknown
        count = plan[0]
        if not 0 < count <= len(operations):
            raise unknown
        self.probes = [self._probe(context, node) for node in plan[1 : count + 1]]
        if any(probe.delegate != (operations[probe.node].name == "DELEGATE") for probe in self.probes):
            raise unknown

    def _probe(self, context: int, node: int) -> Probe:
        found = _pointer()
        registration = ctypes.POINTER(_Registration)()
        status = _GetNode(self._functions[1])(context, node, ctypes.byref(found), ctypes.byref(registration))
        if status != _OK or not registration or not registration.contents.invoke:
            raise BackendError("node {} of this interpreter cannot be watched".format(node))
        return Probe(node, registration.contents)

    def watch(self, nodes: bool, inside: bool = False) -> None:
        """What the invokes that follow are measured for.

        Args:
            nodes: the time of each node.
            inside: what delegates report; to take the reports in adds to the time of their nodes.
        """
        self._running = None
        self._report(inside and self._inside)
        for probe in self.probes:
            if nodes:
                probe.clock()
            elif inside:
                probe.follow(self._enter)
            else:
                probe.release()

    def _enter(self, probe: Probe) -> None:
        self._running = probe
