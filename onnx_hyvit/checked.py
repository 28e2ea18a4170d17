"""Checks of what files say: types of settings, and the size of text before it is parsed."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError, HyvitError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its old name
    import tomli as tomllib

MAX_TEXT_BYTES = 256 << 10  # settings are a few hundred bytes
MAX_DOTS = 2000  # in a line: TOML parsers take memory that grows with the square of a dotted key's length


def check_field_types(settings: Any, error: type[HyvitError] = ConfigError) -> None:
    """Refuse a dataclass whose fields do not hold what their annotations say; an int counts as a float.

    Args:
        settings: Instance of a dataclass.
        error: What to raise.

    Raises:
        HyvitError: As ``error``; names the first such field.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not _matches(value, hints[field.name]):
            wanted = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", field.type)
            raise error(f"{field.name} must be {wanted}, found {value!r:.100}")


def _matches(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, part) for part in parts)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        return len(each) == len(value) and all(map(_matches, value, each))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _matches(key, parts[0]) and _matches(item, parts[1]) for key, item in value.items()
        )
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def read_text(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        ConfigError: The file is missing, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_TEXT_BYTES} bytes; expected a file of settings")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: The file is missing, too large, not TOML, or nested too deeply.
    """
    text = read_text(path)
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ConfigError(f"{path}: not a TOML file of settings (a line with more than {MAX_DOTS} dots)")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from error
