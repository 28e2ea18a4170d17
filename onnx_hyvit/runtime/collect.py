"""Observe tensors of a model over calibration data, batch by batch, with memory that the data do not raise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx

from ..errors import CalibrationError, ConfigError, HyvitError
from .expose import check_tensors, concrete_shape, expose, tensor_types, watch_for_nan
from .session import ModelSource, OptimizationLevel, RuntimeFailure, Session, make_session

# idle threads of the session would spin while the observers work
_NO_SPINNING = {"session.intra_op.allow_spinning": "0"}
MAX_MEMORY = 512 << 20
Progress = Callable[[int, int, str], None]
Batch = tuple[Sequence[object], Mapping[str, np.ndarray]]


class Observer(Protocol):
    """What ``collect`` updates; one that also has ``update_range(low, high)`` is served by in-graph reductions."""

    axis: int | None

    def update(self, values: np.ndarray) -> None:
        """Take in a batch of the tensor."""


class Batches(Protocol):
    """Calibration data: re-iterable batches of (sample ids, feeds), and the number of samples."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


ObserverT = TypeVar("ObserverT", bound=Observer)


def collect(
    model: ModelSource,
    tensors: Sequence[str],
    source: Batches,
    observers: Callable[[str], ObserverT] | Mapping[str, ObserverT],
    progress: Progress | None = None,
    *,
    threads: int = 2,
    optimize: bool | OptimizationLevel = "all",
    max_memory: int = MAX_MEMORY,
) -> dict[str, ObserverT]:
    """Update one observer per tensor with every batch of ``source``.

    Extremes are reduced inside the graph; other observers get the whole tensor. When the whole tensors of a batch
    take more than ``max_memory`` the model is run several times per batch, each time for some of them.

    Args:
        model: ModelProto, bytes or path; float tensors of its main graph can be observed, its inputs too.
        tensors: Names, each once.
        source: Batches of (sample ids, feeds).
        observers: Tensor name to its observer, or a function that makes one.
        progress: Called as ``progress(done samples, all samples, text)`` after every batch.
        threads: Threads of the session and of the observers.
        optimize: Graph optimisations of the session; observed tensors are kept by all of them.
        max_memory: Bytes of activations held at a time; a single larger tensor is still fetched.

    Returns:
        Tensor name to its observer, in the order of ``tensors``.

    Raises:
        RuntimeFailure: A tensor is not in the graph or is no float, or the model cannot be run.
        CalibrationError: There are no batches, or a tensor became NaN or Inf (names the tensor and the samples).
    """
    make = observers if callable(observers) else observers.__getitem__
    chosen = {name: make(name) for name in tensors}
    if len(chosen) != len(tensors):
        raise ConfigError("a tensor is listed more than once")
    proto, folder = _light_proto(model)
    runs: list[_Run] = []
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for samples, feeds in prefetch(source):
            runs = runs or _plan(proto, folder, chosen, feeds, threads, optimize, max_memory)
            for run in runs:
                _observe(run, samples, feeds, chosen, pool, with_feeds=run is runs[0])
            done += len(samples)
            if progress is not None:
                progress(done, len(source), "calibrate")
    if not done:
        raise CalibrationError("the calibration data are empty: expected at least one sample")
    return chosen


class _Run:
    """One session, and which of its outputs belong to which tensor."""

    def __init__(
        self,
        session: Session,
        fetched: Sequence[str],
        reduced: Mapping[str, tuple[str, str]],
        watched: Mapping[str, str],
    ) -> None:
        self.session = session
        self.fetched = fetched
        self.reduced = reduced
        self.watched = watched


def _light_proto(model: ModelSource) -> tuple[onnx.ModelProto, Path | None]:
    """The model without its external data, and the folder where the session finds them."""
    if isinstance(model, onnx.ModelProto):
        return model, None
    try:
        if isinstance(model, (bytes, bytearray)):
            return onnx.load_model_from_string(bytes(model)), None
        path = Path(os.fspath(model))
        return onnx.load_model(path, load_external_data=False), path.parent
    except Exception as error:
        name = "<bytes>" if isinstance(model, (bytes, bytearray)) else os.fspath(model)
        raise RuntimeFailure(f"{name}: cannot be read as an ONNX model ({error})") from error


def _plan(
    proto: onnx.ModelProto,
    folder: Path | None,
    observers: Mapping[str, Observer],
    feeds: Mapping[str, np.ndarray],
    threads: int,
    optimize: bool | OptimizationLevel,
    max_memory: int,
) -> list[_Run]:
    types = tensor_types(proto, {name: value.shape for name, value in feeds.items()})
    check_tensors(proto, observers, types)
    shapes = {name: concrete_shape(types.get(name)) for name in observers}
    reduced = {name: axes for name, axes in _reductions(observers, shapes).items() if name not in feeds}
    whole = [name for name in observers if name not in reduced and name not in feeds]
    sizes = {name: shape for name in whole if (shape := shapes[name]) is not None}
    options: dict[str, Any] = {
        "threads": threads,
        "external_folder": folder,
        "name": "calibration model",
        "config": _NO_SPINNING,
    }
    if len(sizes) < len(whole):
        sizes = _probe(proto, whole, feeds, options)
    runs: list[_Run] = []
    groups = _groups(whole, sizes, max_memory) or [[]]
    options["arena"] = len(groups) == 1  # several sessions would each keep the memory of their largest run
    for group in groups:
        here = reduced if not runs else {}
        exposed, names = expose(proto, group, here, types)
        watched = {} if runs else watch_for_nan(exposed, [value.name for value in proto.graph.output], types)
        runs.append(_Run(make_session(exposed, optimize=optimize, **options), group, names, watched))
    return runs


def _reductions(
    observers: Mapping[str, Observer], shapes: Mapping[str, tuple[int, ...] | None]
) -> dict[str, list[int] | None]:
    """The tensors that are reduced in the graph, with their axes; unknown ranks with an axis are fetched whole."""
    reduced: dict[str, list[int] | None] = {}
    for name, observer in observers.items():
        shape = shapes[name]
        if not hasattr(observer, "update_range") or (shape is not None and 0 in shape):
            continue
        if observer.axis is None:
            reduced[name] = None
        elif shape is not None and len(shape) > 1 and -len(shape) <= observer.axis < len(shape):
            reduced[name] = [axis for axis in range(len(shape)) if axis != observer.axis % len(shape)]
    return reduced


def _probe(
    proto: onnx.ModelProto, tensors: Sequence[str], feeds: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Shapes of ``tensors`` in one run, without holding them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for index, name in enumerate(tensors):
        shape = f"onnx_hyvit_shape_{index}"
        probe.graph.node.append(onnx.helper.make_node("Shape", [name], [shape], shape))
        probe.graph.output.append(onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    found = make_session(probe, optimize="basic", **options).run(feeds)
    return {name: tuple(map(int, shape)) for name, shape in zip(tensors, found.values(), strict=True)}


def _groups(tensors: Iterable[str], shapes: Mapping[str, tuple[int, ...]], max_memory: int) -> list[list[str]]:
    """Cut ``tensors``, in order, into groups of at most ``max_memory`` bytes of float32."""
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        size = 4 * int(np.prod(shapes[name], dtype=np.int64))
        if not groups or size > room:
            groups.append([])
            room = max_memory
        groups[-1].append(name)
        room -= size
    return groups


def _observe(
    run: _Run,
    samples: Sequence[object],
    feeds: Mapping[str, np.ndarray],
    observers: Mapping[str, Observer],
    pool: ThreadPoolExecutor,
    with_feeds: bool,
) -> None:
    try:
        found = run.session.run_shared(feeds)
    except RuntimeFailure as error:
        raise RuntimeFailure(f"{error}, with {_describe(samples)}") from error
    jobs = [(name, found[name]) for name in run.fetched]
    if with_feeds:
        jobs += [(name, feeds[name]) for name in observers if name in feeds]

    def update(job: tuple[str, np.ndarray]) -> None:
        with _naming(job[0], samples):
            observers[job[0]].update(job[1])

    list(pool.map(update, jobs))
    for name, (low, high) in run.reduced.items():
        with _naming(name, samples):
            observers[name].update_range(found[low], found[high])  # type: ignore[attr-defined]
    for name, total in run.watched.items():
        if np.isnan(found[total]):
            raise CalibrationError(f"tensor {name!r} became NaN, with {_describe(samples)}")


@contextlib.contextmanager
def _naming(tensor: str, samples: Sequence[object]) -> Iterator[None]:
    """Add the tensor and the samples to what an observer raises."""
    try:
        yield
    except HyvitError as error:
        raise CalibrationError(f"tensor {tensor!r}: {error}, with {_describe(samples)}") from error


def _describe(samples: Sequence[object]) -> str:
    if len(samples) == 1:
        return f"sample {samples[0]}"
    return f"samples {samples[0]} to {samples[-1]}" if samples else "no samples"


T = TypeVar("T")


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield ``items``, the next one being made in a thread while the caller works on the last."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, iterator, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
