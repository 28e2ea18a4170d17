"""Settings of an export for mobile devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ConfigError

PLATFORMS = ("arm", "amd64")


@dataclass(frozen=True)
class MobileConfig:
    """How a model is exported.

    Args:
        platform: Processor that will run it: ``arm`` (phones; also for the web) or ``amd64``. It decides which
            platform-specific kernels and layouts are baked in.
        fixed_shapes: Input name -> its whole shape, for inputs with free dimensions.
        batch: Size of a free first dimension of the other inputs; None leaves every free dimension free.
        threads: Threads of the timed sessions, at least 1.
        runs: Timed loads and runs of each file, at least 1.
    """

    platform: str = "arm"
    fixed_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | None = 1
    threads: int = 1
    runs: int = 30

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise ConfigError(f"platform {self.platform!r} is unknown; expected one of {', '.join(PLATFORMS)}")
        for name in ("batch", "threads", "runs"):
            value = getattr(self, name)
            if name == "batch" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, found {value!r}")
        for name, shape in self.fixed_shapes.items():
            if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
                raise ConfigError(f"fixed shape of {name!r} must be whole numbers of at least 1, found {shape!r}")


def parse_fixed_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Name and shape of ``input=1,3,256,256``.

    Raises:
        ConfigError: It is not of that form.
    """
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape:
        raise ConfigError(f"fixed shape {text!r} is not understood; expected NAME=SIZES, as in input=1,3,256,256")
    return name, shape
