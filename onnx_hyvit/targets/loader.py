"""Read a target file: by name from this folder, or by path."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TargetError
from .target import OpRule, Target, TensorRule

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its old name
    import tomli as tomllib

_FOLDER = Path(__file__).parent
_TENSOR_KEYS = frozenset({"dtype", "scheme", "bits", "granularity"})
_RULE_KEYS = frozenset({"min_channels", "depthwise", "depthwise_block", "unblocked_taps", "grouped", "attributes"})
_OPTION_KEYS = frozenset(
    {"residual", "matmul_output", "fold_clip", "shield_float", "mismatched_pairs", "opsets", "profile"}
)
_TOP_KEYS = frozenset(
    {"name", "description", "extends", "activation", "weight", "int8", "glue", "carried", "float", "options"}
)


def target_names() -> list[str]:
    """Names of the targets that ship with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_target(name_or_path: str | os.PathLike[str]) -> Target:
    """Load a target by its name, or from a TOML file of one's own.

    A file may say ``extends = "name"``: tables are then merged key by key over that target's. In ``int8``, ``glue``,
    ``carried`` and ``float`` an operator set to ``false`` is taken out.

    Args:
        name_or_path: One of ``target_names()``, or a path that ends in ``.toml``.

    Returns:
        The target, validated.

    Raises:
        TargetError: No such target or file, not TOML, an unknown key, or a value out of range; names file and key.
    """
    values, source = _read(name_or_path, ())
    try:
        return _build(values)
    except TargetError as error:
        raise TargetError(f"{source}: {error}") from error
    except (TypeError, ValueError) as error:
        raise TargetError(f"{source}: a value has the wrong type ({error})") from error


def _read(name_or_path: str | os.PathLike[str], parents: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    text = os.fspath(name_or_path)
    path = Path(text) if text.endswith(".toml") else _FOLDER / f"{text}.toml"
    if not path.is_file():
        raise TargetError(
            f"target {text!r} is unknown; expected one of {', '.join(target_names())}, or the path of a .toml file"
        )
    if str(path) in parents:
        raise TargetError(f"{path}: extends itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(f"{path}: not a readable TOML file ({error})") from error
    _check_keys(values, _TOP_KEYS, str(path))
    base = values.pop("extends", None)
    if base is not None:
        values = _merge(_read(base, (*parents, str(path)))[0], values)
    return values, str(path) if text.endswith(".toml") else f"target {text}"


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _check_keys(values: Any, known: frozenset[str], where: str) -> None:
    if not isinstance(values, dict):
        raise TargetError(f"{where}: expected a table, found {values!r}")
    for key in values:
        if key not in known:
            raise TargetError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")


def _build(values: Mapping[str, Any]) -> Target:
    for key in ("name", "description", "activation", "weight", "int8"):
        if key not in values:
            raise TargetError(f"key {key!r} is missing")
    options = dict(values.get("options", {}))
    _check_keys(options, _OPTION_KEYS, "options")
    if "opsets" in options:
        lowest, highest = options["opsets"]
        options["opsets"] = (int(lowest), int(highest))
    return Target(
        name=str(values["name"]),
        description=str(values["description"]),
        activation=_tensor_rule(values["activation"], "activation"),
        weight=_tensor_rule(values["weight"], "weight"),
        int8=_rules(values["int8"], "int8"),
        glue=_rules(values.get("glue", {}), "glue"),
        carried=_rules(values.get("carried", {}), "carried"),
        float={op: str(reason) for op, reason in values.get("float", {}).items() if reason is not False},
        **options,
    )


def _tensor_rule(values: Any, where: str) -> TensorRule:
    _check_keys(values, _TENSOR_KEYS, where)
    try:
        return TensorRule(**values)
    except TargetError as error:
        raise TargetError(f"{where}: {error}") from error


def _rules(values: Any, where: str) -> dict[str, OpRule]:
    if not isinstance(values, dict):
        raise TargetError(f"{where}: expected a table of operators")
    rules: dict[str, OpRule] = {}
    for op, rule in values.items():
        if rule is False:
            continue
        _check_keys({} if rule is True else rule, _RULE_KEYS, f"{where}.{op}")
        rules[op] = OpRule() if rule is True else OpRule(**rule)
    return rules
