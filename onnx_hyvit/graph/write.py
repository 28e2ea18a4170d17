"""Write files so that nobody ever sees a part of one: through a temporary file beside it and a rename."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import onnx

from ..errors import OutputError

PROTO_LIMIT = 2**31 - 2**20


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
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, destination)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"{destination}: cannot be written ({error.strerror or error})") from error
        raise


def umask() -> int:
    """Permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
