"""Load, check and raise a model; write it back with everything that the graph IR does not carry.

``load_model`` accepts a path, bytes or a ``ModelProto`` and returns a ``Model``: a ``gs.Graph`` to edit, and the
``Origin`` that holds metadata, doc strings and local functions, which ``model_to_proto`` puts back.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from onnx_graphsurgeon.logger import G_LOGGER

from ..errors import ModelError, OutputError
from ..inference import propagate_shapes
from .external_data import check_external_data, check_no_external_data
from .free_sizes import free_unknown_sizes
from .int4 import unpack_int4

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it prints to standard output, names from the model included

MIN_OPSET = 7
DEFAULT_OPSET = 20
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
    }
)
PROTO_LIMIT = 2**31 - 2**20


@dataclass
class Origin:
    """What the graph IR drops, kept to be put back when the model is written; ``opset`` is the file's own."""

    skeleton: onnx.ModelProto
    node_docs: dict[str, onnx.NodeProto] = field(default_factory=dict)
    path: str = "<model>"
    opset: int = DEFAULT_OPSET


@dataclass
class Model:
    """A loaded model: the graph to edit, its opset, and its origin."""

    graph: gs.Graph
    opset: int
    origin: Origin

    @property
    def path(self) -> str:
        """Where the model came from, for messages."""
        return self.origin.path

    @property
    def producer(self) -> str:
        """Name and version of the exporter, as the file states them."""
        skeleton = self.origin.skeleton
        return f"{skeleton.producer_name} {skeleton.producer_version}".strip()


def read_proto(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Read a ModelProto with its external data.

    Args:
        model: Path, serialized bytes, or a ModelProto (copied, never changed).

    Returns:
        The proto with all weights inside, and a name for messages.

    Raises:
        ModelError: Missing or damaged file, not ONNX, external data missing or outside the model's folder.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        check_no_external_data(copy, "<ModelProto>")
        free_unknown_sizes(copy)
        return copy, "<ModelProto>"
    if isinstance(model, (bytes, bytearray)):
        proto = _parse(bytes(model), "<bytes>")
        check_no_external_data(proto, "<bytes>")
        return proto, "<bytes>"
    path = Path(model)
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if not path.is_file():
        raise ModelError(f"{path}: expected an ONNX file, found a folder or device")
    try:
        proto = _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_external_data(proto, path)
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        raise ModelError(f"{path}: external data cannot be read ({_one_line(error)})") from error
    return proto, str(path)


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{name}: the file is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise ModelError(f"{name}: not an ONNX model, or a truncated one ({_one_line(error)})") from error
    _check_text(proto, name)
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{name}: not an ONNX model (no graph in it)")
    free_unknown_sizes(proto)
    return proto


def _check_text(message: Message, name: str) -> None:
    """Refuse strings that are no UTF-8: protobuf hands them out as bytes, which fail in the middle of something."""
    for entry, value in message.ListFields():
        many = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if entry.type == entry.TYPE_MESSAGE:
            for part in value if many else (value,):
                _check_text(part, name)
        elif entry.type == entry.TYPE_STRING:
            for text in value if many else (value,):
                if isinstance(text, bytes):
                    raise ModelError(f"{name}: damaged: {entry.name} {text[:40]!r} is not UTF-8")


def model_bytes(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> int:
    """Size of a model in bytes: of its file and the ``<name>.data`` beside it, or serialized when it is in memory."""
    if isinstance(model, onnx.ModelProto):
        return model.ByteSize()
    if isinstance(model, (bytes, bytearray)):
        return len(model)
    path = Path(model)
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def load_model(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    opset: int = DEFAULT_OPSET,
    *,
    quantized_ok: bool = False,
) -> Model:
    """Load a float model, check it, raise its opset and infer shapes.

    Args:
        model: Path, serialized bytes, or ModelProto.
        opset: Default-domain opset to raise to; a model that is already higher keeps its own.
        quantized_ok: Accept a model that already has quantization operators (for ``inspect``).

    Returns:
        The model, ready for passes. Shapes are inferred where ONNX can; symbolic dimensions stay names.

    Raises:
        ModelError: Anything that makes the file unusable; the message says what and where.
    """
    proto, name = read_proto(model)
    _check(proto, name, quantized_ok)
    unpack_int4(proto)  # the graph IR cannot write it
    source_opset = default_opset(proto) or opset
    loaded = _import(_raise_opset(proto, opset, name), name)
    loaded.origin.opset = source_opset
    return loaded


def _check(proto: onnx.ModelProto, name: str, quantized_ok: bool) -> None:
    functions = {(function.domain, function.name) for function in proto.functions}
    function_domains = {domain for domain, _ in functions}
    version = default_opset(proto)
    if version is None:
        raise ModelError(f"{name}: no opset of the default ONNX domain is imported")
    if not MIN_OPSET <= version <= onnx.defs.onnx_opset_version():
        raise ModelError(
            f"{name}: opset {version} is not supported (expected {MIN_OPSET} to {onnx.defs.onnx_opset_version()}); "
            "export the model again with opset 17 to 20"
        )
    for node in proto.graph.node:
        if node.op_type in QUANTIZED_OPS and not quantized_ok:
            raise ModelError(
                f"{name}: already quantized (node {node.name or node.output[0]!r} is {node.op_type}); "
                "pass the float model instead"
            )
        if node.domain not in KNOWN_DOMAINS and node.domain not in function_domains:
            raise ModelError(
                f"{name}: node {node.name or node.op_type!r} uses the custom domain {node.domain!r}, "
                "whose operators cannot be run here"
            )
    _check_types(proto.graph, name)
    try:
        onnx.checker.check_model(proto)
    except ValueError as error:
        if "exceeds maximum" not in str(error) and "2GB" not in str(error):
            raise ModelError(f"{name}: invalid model ({_one_line(error)})") from error
    except Exception as error:
        raise ModelError(f"{name}: invalid model ({_one_line(error)})") from error


def _check_types(graph: onnx.GraphProto, name: str) -> None:
    """Refuse what the graph IR cannot carry: optional values, and constants of strings."""
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.WhichOneof("value") in ("optional_type", "sparse_tensor_type", "map_type"):
                found = str(value.type.WhichOneof("value")).removesuffix("_type")
                raise ModelError(f"{name}: {kind} {value.name!r} is of type {found}; expected a tensor")
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{name}: constant {tensor.name!r} holds strings; expected numbers")


def default_opset(proto: onnx.ModelProto) -> int | None:
    """Version of the default ONNX domain that ``proto`` imports, or None."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)


def _raise_opset(proto: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    version = default_opset(proto)
    assert version is not None
    if version >= opset or proto.functions:
        return proto  # the converter drops local functions, whose bodies have an opset of their own
    try:
        raised = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:
        if version >= 13:
            return proto  # usable as it is: passes and Q/DQ insertion ask for the opset they need
        raise ModelError(f"{name}: opset {version} cannot be raised to {opset} ({_one_line(error)})") from error
    raised.ir_version = max(proto.ir_version, 9)
    return raised


def _import(proto: onnx.ModelProto, name: str) -> Model:
    inferred = infer_shapes(proto)
    tensors = [value for value in inferred.graph.value_info if not value.type.HasField("optional_type")]
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(tensors)
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    for part in ("node", "initializer", "sparse_initializer", "value_info", "input", "output"):
        skeleton.graph.ClearField(part)
    docs = {
        node.output[0]: node
        for node in _without_tensors(proto.graph.node)
        if node.output and (node.doc_string or node.metadata_props)
    }
    try:
        graph = gs.import_onnx(inferred)
    except Exception as error:
        raise ModelError(f"{name}: the graph cannot be imported ({_one_line(error)})") from error
    graph.functions = []  # they stay in the skeleton, untouched; sorting them never ends where the graph has bodies
    _drop_initializer_inputs(graph)
    _name_nodes(graph)
    return Model(graph, default_opset(proto) or DEFAULT_OPSET, Origin(skeleton, docs, name))


def _without_tensors(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        slim = onnx.NodeProto(op_type=node.op_type, doc_string=node.doc_string)
        slim.output.extend(node.output)
        slim.metadata_props.extend(node.metadata_props)
        yield slim


def _drop_initializer_inputs(graph: gs.Graph) -> None:
    """IR 3 lists initializers among the inputs; an input that is a constant is not an input of ours."""
    graph.inputs = [tensor for tensor in graph.inputs if not isinstance(tensor, gs.Constant)]


def _name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique, stable name: plans, blocks and reports refer to nodes by name."""
    seen: set[str] = set()
    for index, node in enumerate(graph.nodes):
        stem = node.name or f"{node.op}_{index}"
        name, count = stem, 0
        while name in seen:
            count += 1
            name = f"{stem}_{count}"
        seen.add(name)
        node.name = name


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX shape inference with data propagation; the model comes back unchanged where inference fails."""
    try:
        return propagate_shapes(proto)
    except Exception:
        return proto


def model_to_proto(model: Model, *, check: bool = False) -> onnx.ModelProto:
    """The model as a ``ModelProto``, with its metadata, doc strings and functions, topologically sorted.

    Args:
        model: Model to write; its graph is sorted in place.
        check: Also run ``onnx.checker`` with full shape inference.

    Raises:
        ModelError: ``check`` found the graph invalid.
    """
    model.graph.toposort()
    model.graph.opset = model.opset
    try:
        proto = gs.export_onnx(model.graph, do_type_check=False)
    except Exception as error:
        raise ModelError(f"{model.path}: the graph cannot be written ({_one_line(error)})") from error
    skeleton = model.origin.skeleton
    for key in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, key, getattr(skeleton, key))
    proto.ir_version = max(skeleton.ir_version, _ir_version_of(model.opset))
    proto.graph.name = skeleton.graph.name or "graph"
    proto.graph.doc_string = skeleton.graph.doc_string
    for source, destination in (
        (skeleton.metadata_props, proto.metadata_props),
        (skeleton.graph.metadata_props, proto.graph.metadata_props),
        (skeleton.training_info, proto.training_info),
    ):
        del destination[:]
        destination.extend(source)
    _restore_functions(proto, skeleton)
    _restore_node_docs(proto, model.origin)
    if check:
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:
            raise ModelError(f"{model.path}: the rewritten graph is invalid ({_one_line(error)})") from error
    return proto


def _ir_version_of(opset: int) -> int:
    return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _restore_functions(proto: onnx.ModelProto, skeleton: onnx.ModelProto) -> None:
    del proto.functions[:]
    proto.functions.extend(skeleton.functions)
    imported = {entry.domain for entry in proto.opset_import}
    for entry in skeleton.opset_import:
        if entry.domain not in imported and entry.domain not in ("", "ai.onnx"):
            proto.opset_import.append(entry)


def _restore_node_docs(proto: onnx.ModelProto, origin: Origin) -> None:
    for node in proto.graph.node:
        old = origin.node_docs.get(node.output[0]) if node.output else None
        if old is not None and old.op_type == node.op_type:
            node.doc_string = old.doc_string
            del node.metadata_props[:]
            node.metadata_props.extend(old.metadata_props)


def save_proto(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> int:
    """Write ``proto`` to ``path`` atomically: a temporary file beside it, flushed, then renamed.

    A model above protobuf's 2 GiB limit is written with one external-data file ``<name>.data`` beside it.

    Args:
        proto: Model to write.
        path: Destination; its folder must exist.

    Returns:
        Bytes written, external data included.

    Raises:
        OutputError: The folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    destination = Path(path)
    if not destination.parent.is_dir():
        raise OutputError(f"{destination}: the folder {destination.parent} does not exist")
    if destination.is_dir():
        raise OutputError(f"{destination}: is a folder, expected a file name")
    size = 0
    if proto.ByteSize() > PROTO_LIMIT:
        size += _write_external(proto, destination)
    data = proto.SerializeToString(deterministic=True)
    write_bytes(destination, data)
    return size + len(data)


def _write_external(proto: onnx.ModelProto, destination: Path) -> int:
    name = destination.name + ".data"
    parts: list[bytes] = []
    offset = 0
    for tensor in proto.graph.initializer:
        if not tensor.HasField("raw_data") or len(tensor.raw_data) < 1024:
            continue
        raw = tensor.raw_data
        onnx.external_data_helper.set_external_data(tensor, name, offset, len(raw))
        tensor.ClearField("raw_data")
        parts.append(raw)
        offset += len(raw)
    write_bytes(destination.with_name(name), b"".join(parts))
    return offset


def write_bytes(destination: Path, data: bytes) -> None:
    """Write ``data`` to ``destination`` through a temporary file and a rename, so that no partial file is ever seen.

    Raises:
        OutputError: The file cannot be written; the temporary file is removed (on Ctrl-C too).
    """
    # named before it exists: Ctrl-C may come as soon as it does
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, destination)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"{destination}: cannot be written ({error.strerror or error})") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."
