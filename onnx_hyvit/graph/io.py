"""Load a model and raise its opset; turn it back into a proto with everything that the graph IR does not carry.

``load_model`` accepts a path, bytes or a ``ModelProto`` and returns a ``Model``: a ``gs.Graph`` to edit, and the
``Origin`` that holds metadata, doc strings and local functions, which ``model_to_proto`` puts back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from ..errors import ModelError, one_line
from ..inference import propagate_shapes
from .check import check_text, check_usable, default_opset
from .external_data import check_external_data, check_no_external_data
from .free_sizes import free_unknown_sizes
from .int4 import unpack_int4

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it prints to standard output, names from the model included

DEFAULT_OPSET = 20


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
        raise ModelError(f"{path}: external data cannot be read ({one_line(error)})") from error
    return proto, str(path)


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{name}: the file is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise ModelError(f"{name}: not an ONNX model, or a truncated one ({one_line(error)})") from error
    check_text(proto, name)
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{name}: not an ONNX model (no graph in it)")
    free_unknown_sizes(proto)
    return proto


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
    check_usable(proto, name, quantized_ok=quantized_ok)
    unpack_int4(proto)  # the graph IR cannot write it
    source_opset = default_opset(proto) or opset
    loaded = _import(_raise_opset(proto, opset, name), name)
    loaded.origin.opset = source_opset
    return loaded


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
        raise ModelError(f"{name}: opset {version} cannot be raised to {opset} ({one_line(error)})") from error
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
        raise ModelError(f"{name}: the graph cannot be imported ({one_line(error)})") from error
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
        raise ModelError(f"{model.path}: the graph cannot be written ({one_line(error)})") from error
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
            raise ModelError(f"{model.path}: the rewritten graph is invalid ({one_line(error)})") from error
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
