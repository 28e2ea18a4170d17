"""What to do about it: lines that name an option of this tool, those with a measured gain first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .switches import ACTIVATIONS, RESIDUALS, WEIGHTS

WORTH = 0.02  # part of the loss that an option must take away
BLOCKS_NAMED = 3
HARMLESS = 1e-3  # nats, or squared error over power (30 dB)
HARMLESS_DB = 25.0  # of class scores: nearly equal scores have a small divergence whatever happens to them
_TENSOR_ADVICE = {
    "wide_range": (
        "calibrate again, on more --samples of the images that the model will see and with --recipe gains, mse or "
        "percentile, which an outlier does not rule"
    ),
    "clipping": "calibrate on more images (--samples), or take a recipe that cuts less (--recipe minmax or percentile)",
    "dominant_channels": (
        "--recipe gains gives each channel its own scale where that can be folded; where it is in use already, keep "
        "the reader of this tensor float (float_nodes)"
    ),
}


@dataclass(frozen=True)
class Advice:
    """One line.

    Args:
        text: What to do, and what it gains where that was measured.
        option: The option or config key.
        gain: Part of the loss that it takes away, 0 to 1; None when that was not measured.
        block: Name of the block that it is about, or None.
        float_nodes: Nodes for the config key ``float_nodes``.
    """

    text: str
    option: str
    gain: float | None = None
    block: str | None = None
    float_nodes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values (JSON)."""
        return {
            "text": self.text,
            "option": self.option,
            "gain": self.gain,
            "block": self.block,
            "float_nodes": list(self.float_nodes),
        }


NOTHING_TO_GAIN = Advice("the int8 model follows the float one on these samples: there is nothing to gain", "")


def for_blocks(blocks: list[dict[str, Any]], everything: dict[str, Any]) -> list[Advice]:
    """Keep a block float: the blocks whose float copy takes away most of the loss."""
    found = []
    for block in blocks[:BLOCKS_NAMED]:
        if block["gain"] < WORTH or not block["float_nodes"]:
            continue
        text = (
            f"keep {block['name']} float (float_nodes of a --config file): "
            f"takes away {100 * block['gain']:.0f} % of the loss{_agreement(everything, block['without'])}"
        )
        found.append(Advice(text, "float_nodes", block["gain"], block["name"], tuple(block["float_nodes"])))
    return found


def for_kinds(
    kinds: dict[str, dict[str, Any]], everything: dict[str, Any], weight_bits: int, activation_bits: int
) -> list[Advice]:
    """Wider codes, or float residual additions."""
    found = []
    for kind, losses in kinds.items():
        gain = gain_of(losses, everything)
        if gain < WORTH:
            continue
        share = f"takes away {100 * gain:.0f} % of the loss{_agreement(everything, losses)}"
        if kind == RESIDUALS:
            found.append(Advice(f"--residual float: {share}", "--residual", gain))
        elif kind == WEIGHTS and weight_bits < 7:
            text = f"--bits w8a{activation_bits} instead of {weight_bits} bits for weights: {share}"
            found.append(Advice(text, "--bits", gain))
        elif kind == ACTIVATIONS and activation_bits < 8:
            text = f"--bits w{weight_bits}a8 instead of {activation_bits} bits for activations: {share}"
            found.append(Advice(text, "--bits", gain))
    return found


def for_tensors(tensors: list[dict[str, Any]]) -> list[Advice]:
    """What the causes of the worst tensors ask for, where leaving out their rounding takes away part of the loss.

    A range that does not fit is a fault whatever it costs on these samples, and is always named.
    """
    found = []
    for tensor in tensors:
        remedies = [cause for cause in tensor["causes"] if cause["kind"] in _TENSOR_ADVICE]
        gain = tensor["gain"] or 0.0
        if not remedies or (gain < WORTH and remedies[0]["kind"] != "wide_range"):
            continue
        share = f" ({100 * gain:.0f} % of the loss)" if gain >= WORTH else ""
        text = f"{remedies[0]['text']}{share}: {_TENSOR_ADVICE[remedies[0]['kind']]}"
        found.append(Advice(text, "--recipe", tensor["gain"], tensor["block"]))
    return found


def by_gain(*groups: list[Advice]) -> list[Advice]:
    """All lines, the one that takes away most of the loss first; at equal gain the earlier group."""
    return sorted((line for group in groups for line in group), key=lambda line: -(line.gain or 0))


def harmless(everything: dict[str, Any]) -> bool:
    """Whether the int8 model is as good as the float one on these samples: ranking its noise would mislead."""
    agreement = everything["top1_agreement"]
    if agreement is None:
        return everything["loss"] < HARMLESS
    return agreement > 0.995 and everything["loss"] < HARMLESS and (everything["sqnr_db"] or 0) > HARMLESS_DB


def gain_of(losses: dict[str, Any], everything: dict[str, Any]) -> float:
    """Part of the loss of the whole int8 model that is gone in ``losses``; negative when it grew."""
    return (everything["loss"] - losses["loss"]) / everything["loss"] if everything["loss"] > 0 else 0.0


def _agreement(before: dict[str, Any], after: dict[str, Any]) -> str:
    if before["top1_agreement"] is None:
        return ""
    return f", agreement {100 * before['top1_agreement']:.1f} -> {100 * after['top1_agreement']:.1f} %"
