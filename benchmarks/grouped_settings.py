"""What benchmarks/grouped_matmul.py measures, by platform, and the least work that each measurement could be."""

import dataclasses

import jax.numpy as jnp

MEASURED = ("forward", "weight gradient", "both gradients", "feed-forward")


@dataclasses.dataclass(frozen=True)
class Setting:
    """T rows in groups of these shares, and weights [G, K, N] for them."""

    rows: int
    depth: int
    width: int
    shares: tuple[float, ...]
    dtype: str

    def work(self, what: str) -> tuple[int, int]:
        """(FLOPs, bytes) of one of MEASURED: every array is read or written once, what lies between products is not."""
        product, matrix = 2 * self.rows * self.depth * self.width, self.depth * self.width
        groups, met = len(self.shares), sum(share > 0 for share in self.shares)
        of_x, of_y = self.rows * self.depth, self.rows * self.width
        products, numbers = {
            "forward": (1, of_x + of_y + met * matrix),
            "weight gradient": (1, of_x + of_y + groups * matrix),
            "both gradients": (3, 2 * of_x + 2 * of_y + (met + groups) * matrix),
            "feed-forward": (9, 4 * of_x + 3 * (met + groups) * matrix),
        }[what]
        return products * product, numbers * jnp.dtype(self.dtype).itemsize


def settings(platform: str) -> dict[str, Setting]:
    """Layers of MoT (two or three groups) and MoMa (eight), one group, few rows; on a GPU also what peers published."""
    half, even = (0.5, 0.5), (0.125,) * 8
    if platform == "cpu":
        mot, moma, few, plain = (512, 1376), (256, 1024), (512, 1376), "float32"
        rows, rows_moma = 8192, 2048
    else:
        mot, moma, few, plain = (1024, 2816), (1024, 4096), (1024, 4096), "bfloat16"
        rows, rows_moma = 32768, 32768
    found = {
        "G=2, 50/50": Setting(rows, *mot, half, plain),
        "G=2, 90/10": Setting(rows, *mot, (0.9, 0.1), plain),
        "G=2, 100/0": Setting(rows, *mot, (1.0, 0.0), plain),
        "G=3, as the default config": Setting(1024, 128, 344, (0.46, 0.32, 0.22), plain),
        "G=8, even": Setting(rows_moma, *moma, even, plain),
        "G=8, two empty": Setting(rows_moma, *moma, (0.3, 0.25, 0.15, 0.1, 0.1, 0.1, 0.0, 0.0), plain),
        "G=1": Setting(rows_moma, *mot, (1.0,), plain),
        "one row of two groups": Setting(1, *few, (1.0, 0.0), plain),
        "eight rows of two groups": Setting(8, *few, half, plain),
        "eight rows of eight groups": Setting(8, *few, even, plain),
    }
    if platform == "cpu":
        found["G=2, 50/50, bfloat16"] = Setting(2048, *mot, half, "bfloat16")
        found["G=8, even, bfloat16"] = Setting(2048, *moma, even, "bfloat16")
    if platform == "gpu":
        found["G=8, even, K=4096"] = Setting(8192, 4096, 14336, even, plain)
        found["G=128, even"] = Setting(131072, 4096, 1536, (1 / 128,) * 128, plain)
    return found
