"""Read a target file: by name from this folder, or by path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checked import read_toml
from ..errors import ConfigError, TargetError
from .target import OpRule, Target, TensorRule

_FOLDER = Path(__file__).parent
_TENSOR_KEYS = frozenset({"dtype", "scheme", "bits", "granularity"})
_RULE_KEYS = frozenset(
    {"min_channels", "depthwise", "depthwise_block", "unblocked_taps", "grouped", "per_channel", "attributes"}
)
_OPTION_KEYS = frozenset(
    {"residual", "matmul_output", "fold_clip", "shield_float", "mismatched_pairs", "float_bias", "fixed_shapes"}
) | frozenset({"int4_weights", "int16_activations", "cpu_kernels", "opsets", "profile"})
_OP_TABLES = frozenset({"int8", "glue", "carried", "float", "full"})
_TOP_KEYS = frozenset({"name", "description", "extends", "activation", "weight", "options", "session"}) | _OP_TABLES


def target_names() -> list[str]:
    """Names of the targets that ship with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_target(name_or_path: str | os.PathLike[str]) -> Target:
    """Load a target by its name, or from a TOML file of one's own.

    A file may say ``extends = "name"``: tables are then merged key by key over that target's. In ``int8``, ``glue``,
    ``carried``, ``float`` and ``full`` an operator set to ``false`` is taken out; so is ``profile``.

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
    except (TypeError, ValueError, OverflowError) as error:
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
        values = read_toml(path)
    except ConfigError as error:
        raise TargetError(str(error)) from error
    _check_keys(values, _TOP_KEYS, str(path))
    base = values.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise TargetError(f"{path}: extends must be the name of a target or of a .toml file, found {base!r}")
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
    options = dict(_table(values.get("options", {}), "options"))
    _check_keys(options, _OPTION_KEYS, "options")
    if options.get("profile") is False:
        options["profile"] = None
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
        full=_rules(values.get("full", {}), "full"),
        session={key: str(value) for key, value in _table(values.get("session", {}), "session").items()},
        float={op: str(why) for op, why in _table(values.get("float", {}), "float").items() if why is not False},
        **options,
    )


def _tensor_rule(values: Any, where: str) -> TensorRule:
    _check_keys(values, _TENSOR_KEYS, where)
    try:
        return TensorRule(**values)
    except TargetError as error:
        raise TargetError(f"{where}: {error}") from error


def _rules(values: Any, where: str) -> dict[str, OpRule]:
    rules: dict[str, OpRule] = {}
    for op, rule in _table(values, where).items():
        if rule is False:
            continue
        _check_keys({} if rule is True else rule, _RULE_KEYS, f"{where}.{op}")
        try:
            rules[op] = OpRule() if rule is True else OpRule(**rule)
        except TargetError as error:
            raise TargetError(f"{where}.{op}: {error}") from error
    return rules


def _table(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TargetError(f"{where}: expected a table of operators or options, found {values!r}")
    return values
