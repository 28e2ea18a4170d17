"""ONNX Runtime sessions: make one, run it, see what it runs. The log stays silent: what goes wrong is raised."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx.external_data_helper import load_external_data_for_model

from ..errors import ConfigError, ModelError
from .unshare import SHARED_WEIGHT, UNSHARED, unshare_weights

OptimizationLevel = Literal["none", "basic", "extended", "layout", "all"]
ModelSource = onnx.ModelProto | bytes | str | os.PathLike[str]
ORT_VERSION: str = ort.__version__
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_PROTO_LIMIT = 2**31 - 2**20
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
# x86 without VNNI adds two u8 x s8 products in 16 bits, which saturate. With this entry ONNX Runtime uses exact u8 x u8
# kernels there, about 20 % slower, so that a session computes what the same file computes with VNNI or on ARM.
# The second entry: a Gemm with dequantized weights and a float input would else round that input to 8 bits in every run
# (MatMulNBits with accuracy level 4, ONNX Runtime 1.25 and later).
EXACT_SUMS = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class RuntimeFailure(ModelError):
    """ONNX Runtime refused a model or a run; the message is one line with its reason."""


class TensorInfo(NamedTuple):
    """Name, numpy dtype and shape of a graph input or output; a free dimension is its name or None."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]


class Session:
    """A model that can be run; made by ``make_session``.

    Attributes:
        name: What messages call it.
        inputs: Inputs that must be fed, in the order of the model.
        outputs: Outputs, in the order of the model.
        input_names: Their names.
        output_names: Their names.
    """

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session = session
        self.name = name
        self.inputs = tuple(_info(item) for item in session.get_inputs())
        self.outputs = tuple(_info(item) for item in session.get_outputs())
        self.input_names = [info.name for info in self.inputs]
        self.output_names = [info.name for info in self.outputs]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: Input name to array; dtypes and shapes are those of the model.
            outputs: Names to compute; None is all of them.

        Returns:
            Output name to array, in the order asked for.

        Raises:
            RuntimeFailure: An input is missing, unknown or misshapen, or a kernel failed.
        """
        self._check_names(feeds)
        names = self.output_names if outputs is None else list(outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise RuntimeFailure(f"{self.name}: cannot run ({runtime_reason(error)})") from error

    def run_shared(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As ``run`` for all outputs, which are views of the runtime's memory: cheaper for large numeric outputs.

        The memory is free again when the last view of it goes.
        """
        self._check_names(feeds)
        try:
            values = {
                name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed)) for name, feed in feeds.items()
            }
            found = self._session.run_with_ort_values(self.output_names, values)
            return {name: _shared_array(value) for name, value in zip(self.output_names, found, strict=True)}
        except Exception as error:
            raise RuntimeFailure(f"{self.name}: cannot run ({runtime_reason(error)})") from error

    def end_profiling(self) -> str:
        """Stop the profiler that ``make_session`` turned on, and return the path of its JSON file."""
        return str(self._session.end_profiling())

    def _check_names(self, feeds: Mapping[str, np.ndarray]) -> None:
        known = self.input_names
        missing = [name for name in known if name not in feeds]
        unknown = [name for name in feeds if name not in known]
        if missing or unknown:
            what = f"input {missing[0]!r} is missing" if missing else f"there is no input {unknown[0]!r}"
            raise RuntimeFailure(f"{self.name}: {what}; the model takes {', '.join(map(repr, known))}")


def _shared_array(value: ort.OrtValue) -> np.ndarray:
    """A view where this onnxruntime can export one, else a copy."""
    return np.from_dlpack(value) if hasattr(value, "__dlpack_device__") else value.numpy()


def _info(item: ort.NodeArg) -> TensorInfo:
    dtype = _DTYPES.get(item.type) or item.type.removeprefix("tensor(").removesuffix(")")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    return TensorInfo(item.name, kind, tuple(item.shape or ()))


def runtime_reason(error: BaseException) -> str:
    """The reason in an onnxruntime exception, on one line, without its code prefix."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"\S*onnxruntime/\S+\.(?:cc|h):\d+ \S.*?\) ", "", text)
    return text if len(text) <= 300 else text[:297] + "..."


def make_session(
    model: ModelSource,
    *,
    threads: int = 2,
    optimize: bool | OptimizationLevel = True,
    log_level: int = 4,
    name: str | None = None,
    config: Mapping[str, str] | None = None,
    save_optimized: str | os.PathLike[str] | None = None,
    external_folder: str | os.PathLike[str] | None = None,
    exact_sums: bool = True,
    disabled_optimizers: Sequence[str] = (),
    arena: bool = True,
    profile_prefix: str | os.PathLike[str] | None = None,
) -> Session:
    """A CPU session.

    Args:
        model: ModelProto (above 2 GiB it goes through a temporary folder), bytes, or path.
        threads: Threads inside an operator, 1 or more.
        optimize: True is ``all``, False is ``none``, or a level.
        log_level: ONNX Runtime severity that reaches stderr, 0 (all) to 4 (fatal only).
        name: What messages call the model.
        config: Session config entries, such as ``{"session.disable_cpu_ep_fallback": "1"}``.
        save_optimized: Where to write the graph that the session runs.
        external_folder: Where a model in memory finds its external data.
        exact_sums: Whether int8 sums are exact on every processor; False is the session that a user gets by default,
            whose sums can saturate on x86 without VNNI.
        disabled_optimizers: Names of graph transformers of ONNX Runtime to leave out.
        arena: Keep freed memory for the next run; False gives it back to the system.
        profile_prefix: Turns the profiler on; its file is named after this, see ``Session.end_profiling``.

    Raises:
        RuntimeFailure: The model cannot be loaded.
        ConfigError: An option is out of range.
    """
    options = _options(threads, optimize, log_level, {**(EXACT_SUMS if exact_sums else {}), **(config or {})})
    options.enable_cpu_mem_arena = arena
    if save_optimized is not None:
        options.optimized_model_filepath = os.fspath(save_optimized)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_prefix)
    if external_folder is not None:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(Path(external_folder).absolute()))
    name = name or (Path(model).name if isinstance(model, (str, os.PathLike)) else "model")
    with _loadable(model) as loadable:
        try:
            return Session(
                ort.InferenceSession(
                    loadable,
                    options,
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=list(disabled_optimizers),
                ),
                name,
            )
        except Exception as error:
            failure = error
    if exact_sums and SHARED_WEIGHT in str(failure) and not name.endswith(UNSHARED):
        return make_session(
            unshare_weights(model),
            threads=threads,
            optimize=optimize,
            log_level=log_level,
            name=name + UNSHARED,
            config=config,
            save_optimized=save_optimized,
            external_folder=external_folder or _folder_of(model),
            disabled_optimizers=disabled_optimizers,
            arena=arena,
            profile_prefix=profile_prefix,
        )
    raise RuntimeFailure(f"{name}: cannot be loaded ({runtime_reason(failure)})") from failure


def _folder_of(model: ModelSource) -> Path | None:
    return Path(model).parent if isinstance(model, (str, os.PathLike)) else None


def _options(
    threads: int, optimize: bool | OptimizationLevel, log_level: int, config: Mapping[str, str]
) -> ort.SessionOptions:
    level = {True: "all", False: "none"}.get(optimize, optimize) if isinstance(optimize, bool) else optimize
    if level not in _LEVELS:
        raise ConfigError(f"optimize must be one of {', '.join(_LEVELS)}, found {optimize!r}")
    if threads < 1:
        raise ConfigError(f"threads must be 1 or more, found {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[str(level)]
    options.log_severity_level = log_level
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


@contextlib.contextmanager
def _loadable(model: ModelSource) -> Iterator[bytes | str]:
    """What InferenceSession accepts: a path or bytes."""
    if isinstance(model, (bytes, bytearray)):
        yield bytes(model)
    elif isinstance(model, onnx.ModelProto):
        if model.ByteSize() < _PROTO_LIMIT:
            yield model.SerializeToString()
            return
        with tempfile.TemporaryDirectory(prefix="onnx_hyvit_") as folder:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            path = os.path.join(folder, "model.onnx")
            onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
            yield path
    else:
        if not Path(model).is_file():
            raise RuntimeFailure(f"{os.fspath(model)}: no such file")
        yield os.fspath(model)


def optimized_model(
    model: ModelSource, *, threads: int = 2, level: OptimizationLevel = "all", config: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The graph that ONNX Runtime runs once it has optimised ``model``, weights included.

    Raises:
        RuntimeFailure: The model cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="onnx_hyvit_") as folder:
        path = os.path.join(folder, "optimized.onnx")
        entries = dict(config or {})
        if _size_of(model) > _PROTO_LIMIT // 2:
            entries["session.optimized_model_external_initializers_file_name"] = "weights.bin"
        make_session(model, threads=threads, optimize=level, config=entries, save_optimized=path)
        proto = onnx.load_model(path, load_external_data=False)
        load_external_data_for_model(proto, folder)
        return proto


def _size_of(model: ModelSource) -> int:
    if isinstance(model, onnx.ModelProto):
        return model.ByteSize()
    if isinstance(model, (bytes, bytearray)):
        return len(model)
    path = Path(model)
    return sum(item.stat().st_size for item in path.parent.glob(path.name + "*") if item.is_file())
