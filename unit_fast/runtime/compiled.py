"""The "compile" backend: the graph through torch.compile's own compiler, Inductor, with frozen weights.

Dynamo, the front half of torch.compile, has nothing left to do on a captured graph, and it costs: 200 µs a call of an
18-site network for its guards and frame, a compilation for each batch size until, at the ninth, it silently runs
eagerly, another one under ``torch.inference_mode``, and errors in threads that serve while another compiles. So the
graph goes to Inductor directly, and what was compiled is found by the shapes of the inputs.
"""

import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch._inductor
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from unit_fast.capture import ONE_AT_A_TIME
from unit_fast.errors import BackendUnavailableError, FallbackWarning, ParityError
from unit_fast.fingerprint import fingerprint
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.runtime.agreement import difference, judgeable
from unit_fast.runtime.allocator import keep_freed_memory
from unit_fast.runtime.calls import Call
from unit_fast.runtime.constants import Constants
from unit_fast.runtime.cuda_graphs import GraphCache, cuda_graphs
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.flat import FlatGraph, Key, key_of, require_devices
from unit_fast.runtime.kernel_graph import as_channels_last
from unit_fast.runtime.packing import pack_bounds
from unit_fast.runtime.program import Program
from unit_fast.runtime.variables import keeping

Function = Callable[..., Any]

MOST_ALONE = 4
"""Batch sizes above 1 that a graph is compiled for one by one: each may want the weights packed in its own way."""

MOST_COMPILATIONS = 24
"""Of one graph: inputs of a further kind run eagerly. Images of many sizes would else be compiled for without end."""

IN_CPP = True
"""Whether C++ calls the kernels on a CPU, where it can; for measuring what that gains."""

_logger = logging.getLogger(__name__)


class Compiled:
    """Runs the graph through Inductor, which fuses each clamp into the loop around it; for inference only.

    On a GPU sizes that are warmed up are replayed as CUDA graphs.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._maps = [site.name for site in program.bounds.sites if site.channel_axis == 1]
        self._constants = Constants()
        self._output = self._graph(program.module)
        self._with_counts: CompiledGraph | None = None
        self._with_excess: CompiledGraph | None = None

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG003 - the protocol's
        """Why Inductor cannot compile for ``device``."""
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")):
            return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU and none is on the PATH; install one"
        if device.type == "cuda" and not torch.utils._triton.has_triton():
            return "torch.compile needs Triton on CUDA; install the triton that belongs to this torch"
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._output(args, kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites)."""
        output, counts = self._counting()(args, kwargs)
        return output, counts

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each."""
        output, counts, excess = self._inspecting()(args, kwargs)
        return output, counts, excess

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Compile for these batch sizes, and compare with the reference."""
        self._warm(batch_sizes, self._output, *([self._counting()] if monitor else []))

    def warm_inspect(self, batch_sizes: Sequence[int]) -> None:
        """The same for ``inspect``."""
        self._warm(batch_sizes, self._inspecting())

    def explain(self) -> list[SiteNote]:
        """Inductor fuses what is pointwise."""
        runs = f"Inductor, compiled for {self._output.compiled_for}"
        return [
            SiteNote(site, "what is pointwise around it", runs, "weights frozen; agrees with the reference")
            for site in self._program.bounds
        ]

    def _warm(self, batch_sizes: Sequence[int], *graphs: "CompiledGraph") -> None:
        on_gpu = any(tensor.is_cuda for tensor in self._program.example.tensors())
        # Of CUDA graphs the largest first: its memory serves the others.
        for size in sorted(set(batch_sizes), reverse=True) if on_gpu else batch_sizes:
            call = self._program.example.of_size(size)
            for graph in graphs:
                graph.warm(call.args, call.kwargs)

    def _counting(self) -> "CompiledGraph":
        with self._lock:
            if self._with_counts is None:
                self._with_counts = self._graph(self._program.counting, (-1,))
            return self._with_counts

    def _inspecting(self) -> "CompiledGraph":
        with self._lock:
            if self._with_excess is None:
                self._with_excess = self._graph(self._program.inspecting, (-2,))
            return self._with_excess

    def _graph(self, module: fx.GraphModule, counts: Collection[int] = ()) -> "CompiledGraph":
        program = self._program
        return CompiledGraph(module, program.example, self._constants, program.dtype, counts, self._maps)


@dataclass(frozen=True)
class _Variant:
    """What one compilation gave, and the inputs it is for."""

    function: Function
    key: Key
    batch: sympy.Symbol | None  # None: for the batch size in the key only
    guards: tuple[sympy.Basic, ...]
    sizes: str

    def takes(self, key: Key, batch: int) -> bool:
        if self.batch is None:
            return key == self.key
        same = all(a[0][1:] == b[0][1:] and a[1:] == b[1:] for a, b in zip(key, self.key, strict=True))
        here = {self.batch: sympy.Integer(batch)}
        return same and batch > 1 and all(guard.xreplace(here) == sympy.true for guard in self.guards)


class CompiledGraph:
    """A graph compiled when inputs of a new kind come: once for one sample, once or twice for all larger batches.

    Sizes that are warmed up are also compiled one by one: on a CPU since only then oneDNN gets its weights packed
    beforehand, on a GPU since kernels for one size are faster; there a CUDA graph of each is kept. What is compiled
    first meets the reference, the graph run eagerly, at every new batch size.

    Args:
        module: the graph.
        example: samples on the device that the graph is on.
        constants: of all graphs of the model.
        dtype: what it computes in.
        counts: which of its outputs are counts, see :func:`difference`.
        maps: the sites whose activations are maps, (N, C, H, W), of a convolution.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example: Call,
        constants: Constants,
        dtype: torch.dtype,
        counts: Collection[int] = (),
        maps: Collection[str] = (),
    ) -> None:
        self._flat = FlatGraph(module)
        self._devices = [tensor.device for tensor in self._flat.tensors(example.args, example.kwargs)]
        self._constants = constants
        self._dtype = dtype
        self._counts = counts
        self._maps = maps
        self._batched = self._flat.batched_inputs
        self._variants: list[_Variant] = []
        self._known: dict[Key, Function] = {}
        # What calls the kernels: C++ saves 0.1 ms a call of a network of 20 layers.
        self._in_cpp = IN_CPP and all(device.type == "cpu" for device in self._devices)
        self._on_gpu = bool(self._devices) and all(device.type == "cuda" for device in self._devices)
        self._graphs: GraphCache | None = None
        if self._on_gpu and self._batched:
            self._graphs = cuda_graphs(self._launched, self._batched, self._devices[0])

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the graph's module returns.

        Raises:
            DataError: an input is on another device than the graph.
            BackendUnavailableError: Inductor cannot compile the graph.
            ParityError: what it compiled disagrees with the reference.
        """
        inputs = self._inputs(args, kwargs)
        run = self._graphs or self._launched
        with torch.no_grad(), torch.autocast("cuda", enabled=False) if self._on_gpu else nullcontext():
            outputs = run(inputs)
        return self._flat.unflatten(outputs, inputs)

    def warm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compile now what such a call needs, and for its very size too, of at most ``MOST_ALONE`` sizes.

        Raises:
            As a call.
        """
        inputs = self._inputs(args, kwargs)
        key = key_of(inputs)
        if self._graphs is not None:
            self._capture(self._graphs, key, inputs)
            return
        self(args, kwargs)
        with ONE_AT_A_TIME:
            batch = self._batch(key)
            alone = [variant for variant in self._variants if variant.batch is None and self._batch(variant.key) > 1]
            chosen = next((variant for variant in self._variants if variant.takes(key, batch)), None)
            if chosen is None or chosen.batch is None or len(alone) >= MOST_ALONE:
                return
            with torch.inference_mode(False), torch.no_grad():
                self._variants.insert(0, self._compile(key, inputs, batch, dynamic=False))
        self._known.pop(key, None)
        self(args, kwargs)

    @property
    def compiled_for(self) -> str:
        """The batch sizes it is compiled for, in words."""
        single = sorted(int(variant.sizes) for variant in self._variants if variant.batch is None)
        others = [variant.sizes for variant in self._variants if variant.batch is not None]
        return f"batch {', '.join([*map(str, single), *others])}" if self._variants else "nothing yet"

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of a call as it is compiled for them: contiguous, on a GPU maps in channels_last."""
        if not self._on_gpu:
            return self._flat.flatten(args, kwargs)
        tensors = self._flat.tensors(args, kwargs)
        return [
            as_channels_last(tensor) if tensor.ndim == 4 and tensor.is_floating_point() else tensor.contiguous()
            for tensor in tensors
        ]

    def _launched(self, inputs: Sequence[Tensor]) -> Any:
        """The graph's outputs, kernel by kernel."""
        key = key_of(inputs)
        function = self._known.get(key)
        return self._first_call(key, inputs) if function is None else function(*inputs)

    def _capture(self, graphs: GraphCache, key: Key, inputs: Sequence[Tensor]) -> None:
        """Compile for these very sizes, and keep a CUDA graph; none, should Inductor have made what has none."""
        with ONE_AT_A_TIME, torch.inference_mode(False), torch.no_grad():
            known = any(variant.batch is None and variant.key == key for variant in self._variants)
            if not known and len(self._variants) < MOST_COMPILATIONS:
                self._variants.insert(0, self._compile(key, inputs, self._batch(key), dynamic=False))
                self._known.pop(key, None)
        with torch.no_grad(), torch.autocast(self._devices[0].type, enabled=False):
            expected = self._launched(inputs)
            if key not in self._known:
                return  # infinite results, by which nothing can be judged
            try:
                graphs.warm(inputs)
                found = difference(graphs(inputs), expected, self._counts, self._dtype)
            except RuntimeError as error:
                found = _first_line(error)
        if found is not None:
            self._graphs = None
            warnings.warn(
                f"what torch.compile made runs kernel by kernel: a CUDA graph of it fails: {found}",
                FallbackWarning,
                stacklevel=6,
            )

    def _first_call(self, key: Key, inputs: Sequence[Tensor]) -> Any:
        require_devices(inputs, self._devices)
        with torch.inference_mode(False), torch.no_grad():
            expected = self._flat.module(*inputs)  # inputs that do not fit fail here, in the model's own words
            if any(key[index][0][0] == 0 for index in self._batched):
                return expected
            batch = self._batch(key)
            with ONE_AT_A_TIME:
                variant = next((variant for variant in self._variants if variant.takes(key, batch)), None)
                if variant is None and len(self._variants) >= MOST_COMPILATIONS:
                    _warn_of_eager(key)
                    self._known[key] = self._flat.module
                    return expected
                if variant is None:
                    variant = self._compile(key, inputs, batch, dynamic=batch > 1)
                    self._variants.append(variant)
            outputs = variant.function(*inputs)
        if not judgeable(expected):
            return outputs
        found = difference(outputs, expected, self._counts, self._dtype)
        if found is not None:
            raise ParityError(
                f"torch.compile does not compute what the sanitised graph computes at batch {batch}: {found}; "
                'use backend="eager", and report it with the versions that unit-fast env shows'
            )
        self._known[key] = variant.function
        return outputs

    def _batch(self, key: Key) -> int:
        """The batch size; 1 where inputs differ in it, which compiles for these shapes alone."""
        batches = {key[index][0][0] for index in self._batched}
        return batches.pop() if len(batches) == 1 else 1

    @cached_property
    def _laid_out(self) -> fx.GraphModule:
        """The graph as it is compiled: Inductor runs convolutions in channels_last, and bounds should lie like maps."""
        module = copy_graph(self._flat.module)
        pack_bounds(module, self._maps)
        return module

    @cached_property
    def _identity(self) -> str:
        """Keeps Inductor's cache on disk from giving this graph what it compiled for other bounds.

        Inductor writes frozen numbers without a dimension into its code, and leaves them out of its key.
        """
        return fingerprint(self._laid_out).sha256

    def _compile(self, key: Key, inputs: Sequence[Tensor], batch: int, dynamic: bool) -> _Variant:
        if not self._on_gpu:
            keep_freed_memory()
        _logger.info("compiling the sanitised graph for batch %s", f"{batch} and others" if dynamic else batch)
        if self._in_cpp:
            try:
                return self._variant(key, inputs, batch, dynamic)
            except Exception as error:  # noqa: BLE001 - the compiler's, of any kind
                reason = _first_line(error)
        in_cpp, self._in_cpp = self._in_cpp, False
        try:
            variant = self._variant(key, inputs, batch, dynamic)
        except Exception as error:
            raise BackendUnavailableError(
                f'torch.compile cannot compile the sanitised graph: {_first_line(error)}; use backend="eager"'
            ) from error
        if in_cpp:
            warnings.warn(
                "the kernels of the sanitised graph are called from Python, which is slower: Inductor cannot call them "
                f"from C++: {reason}",
                FallbackWarning,
                stacklevel=8,
            )
        return variant

    def _variant(self, key: Key, inputs: Sequence[Tensor], batch: int, dynamic: bool) -> _Variant:
        shapes = ShapeEnv()
        mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
        fakes: list[Any] = [
            mode.from_tensor(
                tensor.detach(),
                source=ConstantSource(f"input_{index}"),
                symbolic_context=StatelessSymbolicContext(
                    dynamic_sizes=[
                        DimDynamic.DUCK if dynamic and axis == 0 and index in self._batched else DimDynamic.STATIC
                        for axis in range(tensor.ndim)
                    ]
                ),
            )
            for index, tensor in enumerate(inputs)
        ]
        module = copy_graph(self._laid_out)
        # Where what calls the kernels is C++, Inductor reads off the graph what inputs are like, which there is for any
        # batch size.
        placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
        for node, fake in zip(placeholders, fakes, strict=True):
            node.meta["val"] = fake
        # torch adds patch to its config modules as they are imported.
        tagged = torch.compiler.config.patch(cache_key_tag=self._identity)  # type: ignore[attr-defined]
        with self._constants.sharing(), tagged, keeping("TRITON_CACHE_DIR"):  # Inductor sets it, for our kernels too
            function = torch._inductor.compile(module, fakes, {"freezing": True, "cpp_wrapper": self._in_cpp})
        size = fakes[self._batched[0]].shape[0] if self._batched else batch
        symbol = size.node.expr if isinstance(size, torch.SymInt) else None
        if not isinstance(symbol, sympy.Symbol):  # compilation found that only this size will do
            return _Variant(function, key, None, (), str(batch))
        least, most = shapes.var_to_range[symbol].lower, shapes.var_to_range[symbol].upper
        sizes = f"{least} to {most}" if most.is_Integer and most < 2**31 else f"{least} and more"
        return _Variant(function, key, symbol, tuple(guard.expr for guard in shapes.guards), sizes)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _warn_of_eager(key: Key) -> None:
    shapes = [tuple(shape) for shape, _, _ in key]
    warnings.warn(
        f"inputs of shapes {shapes} run eagerly: the graph has been compiled for {MOST_COMPILATIONS} kinds of inputs "
        "already; bring images to one of few sizes",
        FallbackWarning,
        stacklevel=6,
    )
