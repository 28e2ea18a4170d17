"""Settings of a quantization run: frozen dataclasses, validated when they are built."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checked import check_field_types, read_toml
from .errors import ConfigError

RESIDUALS = ("auto", "float", "int8")
OBJECTIVES = ("balanced", "speed", "size")
GELUS = ("auto", "exact", "sigmoid")
WEIGHTINGS = ("mse", "fisher", "auto")
LOSSES = ("auto", "classifier", "sequence", "segmentation", "embedding", "regression")
MODES = ("partial", "full")
AUTO_TARGET = "auto"
OPSETS = range(17, 24)
MAX_THREADS = 1024
WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = (*range(2, 9), 16)
WIDE_OPSET = 21  # the first with INT4 and 16-bit codes
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kKmMgGtT])(?:i?[bB])?)?")
_BITS = re.compile(r"w(\d+)a(\d+)")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is unknown; expected one of {', '.join(allowed)}")


def parse_bytes(size: object) -> int | None:
    """A number of bytes: a number, or text such as ``512M`` or ``1.5G`` (powers of 1024).

    Raises:
        ConfigError: It is neither, or less than a megabyte.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(str(size).strip()) if not isinstance(size, bool) else None
    if not found:
        raise ConfigError(f"max_memory {size!r} is not understood; expected bytes, for example 512M or 2G")
    count = int(float(found[1]) * 1024 ** ("kmgt".index(found[2].lower()) + 1 if found[2] else 0))
    if count < 1 << 20:
        raise ConfigError(f"max_memory must be at least 1M, found {size!r}")
    return count


@dataclass(frozen=True)
class QuantConfig:
    """How a model is quantized.

    Args:
        recipe: Name of a recipe (see ``onnx_hyvit.recipes``): which ranges, which search.
        bits: ``w<weights>a<activations>``, 2 to 8 bits each; ``w8a8`` runs on int8 kernels as it is. Activations may
            also have 16 bits, for targets that have kernels for them; that raises ``opset`` to 21. ``auto`` is w8a8
            with 4 bits for as many small weights as keep the outputs close, see ``weight_widths``.
        mode: What is quantized: ``partial`` (where int8 kernels pay), or ``full``: also attention products, and what
            softmax, norms and activation functions read and write, as the target's file allows; for accelerators that
            have integers only. Speed decides nothing then, and no node goes back to float for its error.
        target: Name of a target or path of a target TOML file: where Q/DQ pairs go and of which type. ``auto`` is the
            one for the processor that this runs on: ``ort-x86``, ``ort-x86-avx2`` (no VNNI) or ``ort-arm``.
        samples: Calibration samples to use, at least 1; None uses all.
        seed: Seed of every random choice.
        batch_size: Samples in one calibration run when the model's batch is free, at least 1.
        max_memory: Bytes that activations may take during calibration, a number or text such as ``512M``; batches get
            smaller, and tensors are fetched in more runs, to keep to it. The process and the model come on top, and a
            single sample always runs. None: 512 MiB for each run, whatever the batch.
        threads: Threads that ONNX Runtime may use, 1 to 1024.
        opset: Opset of the result, 17 to 23; a model that is already higher keeps its own.
        residual: Residual additions: ``auto`` (weighed by time and error where the recipe weighs precision and the
            target has costs, else the target's rule), ``float`` or ``int8``.
        activation_type: ``uint8`` or ``int8`` instead of the target's; None keeps it.
        activation_symmetric: Symmetric activations instead of the target's scheme; None keeps it.
        per_channel: One weight scale per output channel where the target has it; False, one per tensor.
        float_nodes: Names of nodes that must stay float, whatever the target says.
        rewrite_layout: Also run the exact rewrites that make the graph cheaper (data layout, padding, fused forms).
        verify: Run the finished model at every optimisation level and compare.
        cache: Keep the results of finished blocks until the run ends, so that an interrupted one goes on from there.
        objective: ``balanced`` keeps float the regions where that saves a larger share of the time than it adds to the
            bytes of the weights, ``speed`` all that lose time in int8, ``size`` none; it needs a profile of kernels,
            without which the target's rules decide.
        gelu: ``auto`` puts ``x * sigmoid(c x)``, which has int8 kernels, in place of GELUs where the time that it
            saves is worth the error, by recipes with mixed precision and with a profile of kernels; ``sigmoid``
            wherever it saves time; ``exact`` nowhere.
        profile: Path of a profile made by ``tools/profile_kernels.py``, instead of the one that the target ships.
        max_drop: Divergence of the outputs from the float model's that must not be exceeded on the calibration samples
            (KL in nats for classes, 1 - cosine for embeddings, else relative squared error); nodes go back to float
            until it holds, or first to 16-bit activations where the target has kernels for them, which raises ``opset``
            to 21. Text such as ``0.5%`` is the largest loss of top-1 on labelled calibration samples instead.
            None sets no limit.
        weighting: How block reconstruction weights errors: ``mse``, ``fisher``, or ``auto``, which tries both and keeps
            what leaves the outputs closer to float on samples held out from the search, at about twice the time; None
            leaves it to the recipe.
        loss: What the model's outputs are, which says how errors in them count: one of ``LOSSES`` for all, or
            ``output=kind`` for some, with commas between. ``auto`` guesses by shapes, names and last nodes.
        pack_int4: Store weights of 4 bits or fewer as ONNX INT4, two in a byte, instead of in 8-bit containers; raises
            ``opset`` to 21. ONNX Runtime's CPU runs such layers in float.
        verify_speed: Time the int8 model against the float one on this machine, and take blocks back to float until it
            is not slower. Clocks decide, so two runs may differ.
    """

    recipe: str = "q-hyvit"
    bits: str = "w8a8"
    mode: str = "partial"
    target: str = AUTO_TARGET
    samples: int | None = 64
    seed: int = 0
    batch_size: int = 8
    max_memory: int | None = None
    threads: int = field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)))
    opset: int = 20
    residual: str = "auto"
    activation_type: str | None = None
    activation_symmetric: bool | None = None
    per_channel: bool = True
    float_nodes: tuple[str, ...] = ()
    rewrite_layout: bool = True
    verify: bool = True
    cache: bool = True
    objective: str = "balanced"
    gelu: str = "auto"
    profile: str | None = None
    verify_speed: bool = False
    max_drop: float | str | None = None
    pack_int4: bool = False
    weighting: str | None = None
    loss: str = "auto"

    def __post_init__(self) -> None:
        _one_of("residual", self.residual, RESIDUALS)
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("gelu", self.gelu, GELUS)
        _one_of("mode", self.mode, MODES)
        if self.weighting is not None:
            _one_of("weighting", self.weighting, WEIGHTINGS)
        for kind in self.losses.values():
            _one_of("loss", kind, LOSSES)
        if self.activation_type not in (None, "uint8", "int8"):
            raise ConfigError(f"activation_type {self.activation_type!r} is unknown; expected uint8 or int8")
        if self.opset not in OPSETS:
            raise ConfigError(f"opset {self.opset} is not supported; expected {OPSETS.start} to {OPSETS.stop - 1}")
        for name in ("samples", "batch_size", "threads"):
            value = getattr(self, name)
            if name == "samples" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, found {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, found {self.seed!r}")
        object.__setattr__(self, "max_memory", parse_bytes(self.max_memory))
        if self.threads > MAX_THREADS:
            raise ConfigError(f"threads must be at most {MAX_THREADS}, found {self.threads}")
        if isinstance(self.float_nodes, str) or not isinstance(self.float_nodes, Iterable):
            raise ConfigError(f"float_nodes must be a list of node names, found {self.float_nodes!r}")
        object.__setattr__(self, "float_nodes", tuple(self.float_nodes))
        self._check_max_drop()
        self._check_mode()
        self._parse_bits()
        check_field_types(self)
        if self.pack_int4 and self.weight_bits > 4 and not self.is_auto:
            raise ConfigError(f"pack_int4 needs weights of 4 bits or fewer: bits w4a8 or auto; found {self.bits}")

    def _check_max_drop(self) -> None:
        value, percent = self.max_drop, False
        if value is None:
            return
        if isinstance(value, str):
            text = value.strip()
            percent = text.endswith("%")
            value = _number(text.removesuffix("%"))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"max_drop must be a number of at least 0, or a percentage; found {self.max_drop!r}")
        if percent and value > 100:
            raise ConfigError(f"max_drop must be at most 100%, found {self.max_drop!r}")
        object.__setattr__(self, "max_drop", f"{value:g}%" if percent else float(value))

    @property
    def max_loss(self) -> float | None:
        """Largest loss of top-1, 0 to 1; None where ``max_drop`` is a divergence or not set."""
        return float(self.max_drop[:-1]) / 100 if isinstance(self.max_drop, str) else None

    @property
    def losses(self) -> dict[str, str]:
        """Output -> what ``loss`` says it is; what all others are stands at the empty name."""
        parts = [part.strip() for part in str(self.loss).split(",")]
        split = [(name.strip(), kind.strip()) for name, _, kind in (part.rpartition("=") for part in parts)]
        if len(dict(split)) < len(split):
            raise ConfigError(f"loss {self.loss!r} says twice what an output is")
        return dict(split)

    def _check_mode(self) -> None:
        for name, wanted in (("max_drop", self.max_drop is not None), ("verify_speed", self.verify_speed)):
            if wanted and self.mode == "full":
                raise ConfigError(f"{name} takes nodes back to float, which mode full rules out; choose one of the two")

    def _parse_bits(self) -> tuple[int, int]:
        if self.is_auto:
            return 8, 8
        found = _BITS.fullmatch(self.bits.lower()) if isinstance(self.bits, str) else None
        widths = tuple(int(group) for group in found.groups()) if found else ()
        if len(widths) != 2 or widths[0] not in WEIGHT_BITS or widths[1] not in ACTIVATION_BITS:
            raise ConfigError(f"bits {self.bits!r} is not understood; expected w2a2 to w8a8, w2a16 to w8a16, or auto")
        return widths[0], widths[1]

    @property
    def is_auto(self) -> bool:
        """Whether each weight gets 4 or 8 bits by what it does to the outputs."""
        return isinstance(self.bits, str) and self.bits.lower() == "auto"

    @property
    def weight_bits(self) -> int:
        """Bits of a weight code."""
        return self._parse_bits()[0]

    @property
    def activation_bits(self) -> int:
        """Bits of an activation code."""
        return self._parse_bits()[1]

    @property
    def is_wide(self) -> bool:
        """Whether the result needs opset 21 for the types of its codes."""
        return self.pack_int4 or self.activation_bits > 8

    @property
    def needed_opset(self) -> int:
        """Opset of the result: ``opset``, or the first that has the types of its codes."""
        return max(self.opset, WIDE_OPSET) if self.is_wide else self.opset

    def replace(self, **changes: Any) -> QuantConfig:
        """A copy with some settings changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for reports."""
        return {**dataclasses.asdict(self), "float_nodes": list(self.float_nodes)}


def config_from_mapping(values: Mapping[str, Any], source: str = "config") -> QuantConfig:
    """Build a config from names and values.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type or range; names ``source`` and the key.
    """
    known = {entry.name for entry in dataclasses.fields(QuantConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{source}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return QuantConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except TypeError as error:
        raise ConfigError(f"{source}: a setting has the wrong type ({error})") from error


def load_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> QuantConfig:
    """Read a TOML file of settings; ``overrides`` (from the command line) win.

    Raises:
        ConfigError: The file is missing, is not TOML, or holds a bad setting.
    """
    return config_from_mapping({**read_toml(Path(path)), **(overrides or {})}, str(path))
