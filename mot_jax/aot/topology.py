"""Names of machines -> their devices, and what one device can do."""

import dataclasses
import math

from mot_jax.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as its vendor's data sheet has it. `devices`: how many JAX sees in it.

    `flops`: dense bfloat16 a second. `bandwidth`: bytes a second from its memory. `link`: bytes a second in one
    direction of one link to a neighbour, of which it has two for each dimension of the topology; 0 without links.
    """

    memory: int
    flops: float
    bandwidth: float
    link: float
    dimensions: int
    devices: int = 1


GIB = 2**30
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, 50e9, 2),
    "v5p": Chip(95 * GIB, 459e12, 2_765e9, 100e9, 3),
    "v6e": Chip(32 * GIB, 918e12, 1_640e9, 100e9, 2),
    "tpu7x": Chip(192 * GIB, 2_307e12, 7_380e9, 100e9, 3, devices=2),
    "h100": Chip(80 * 10**9, 989e12, 3_352e9, 0.0, 0),
}
SLICES = {  # shapes that Google Cloud rents, by chips
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16"),
}
CORES = {"v5p": 2}  # Cloud names count TensorCores
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `chips` of one `kind` in the `shape` of a grid, as in (8, 8, 8); one GPU has the shape ()."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return self.chip.memory // self.chip.devices

    @property
    def flops(self) -> float:
        """Of one device, dense bfloat16 a second."""
        return self.chip.flops / self.chip.devices

    @property
    def bandwidth(self) -> float:
        """Of one device, bytes a second from its memory."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def grid(self) -> str:
        """As in `v5p:8x8x8`."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" if self.shape else self.kind

    @property
    def description(self) -> str:
        chips = f"{self.chips} chip{'s' if self.chips > 1 else ''}"
        seen = f", {self.devices} devices" if self.devices != self.chips else ""
        counted = " (the name counts TensorCores, two a chip)" if self.kind in CORES and "-" in self.name else ""
        return f"{self.grid}, {chips}{seen}{counted}"


def parse_target(name: str) -> Target:
    """`v5e:16x16`, a Cloud name such as `v5p-512`, or `h100`.

    Raises:
      ConfigError: no such machine; lists the known.
    """
    if name == "h100":
        return Target(name, name, ())
    kind, grid, shape = name.partition(":")
    cloud, dash, count = name.rpartition("-")
    if grid and kind in CHIPS and shape in SLICES.get(CHIPS[kind].dimensions, ()):
        return Target(name, kind, tuple(map(int, shape.split("x"))))
    kind = ALIASES.get(cloud, cloud)
    if dash and count.isdigit() and kind in CHIPS and kind != "tpu7x":  # whose slices Cloud names by their shape
        for each in SLICES.get(CHIPS[kind].dimensions, ()):
            sizes = tuple(map(int, each.split("x")))
            if math.prod(sizes) * CORES.get(kind, 1) == int(count):
                return Target(name, kind, sizes)
    raise ConfigError(f"--aot: no topology {name!r}{_close(name) or ';'} known: {_known()}")


def _close(name: str) -> str:
    found = nearest(
        name, (f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in SLICES.get(chip.dimensions, ()))
    )
    return found if "mean" in found else ""


def _known() -> str:
    grids = [f"{kind}:{'|'.join(SLICES[chip.dimensions])}" for kind, chip in CHIPS.items() if chip.dimensions]
    return f"{', '.join(grids)}, h100, and Cloud's v5litepod-N and v6e-N (N chips) and v5p-N (N TensorCores, N/2 chips)"
