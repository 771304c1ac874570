"""How many rows a tile holds, from the shapes alone: never from the platform, so a layout means the same everywhere."""


def choose_tile(num_rows: int, num_groups: int) -> int:
    """Rows per tile: the largest power of two not above T / (5 G), from 8 (a few rows being decoded) to 256.

    A group's last tile is half padding on average, so padding is a twentieth to a tenth of the rows. A TPU v6e wants
    256 rows (its matrix units are busy for 0.88 of a kernel's cycles, against 0.78 at 128), a v5e is content with 128.
    """
    share = num_rows // (5 * num_groups)
    return min(256, max(8, 1 << (share.bit_length() - 1) if share else 0))


def num_tiles(num_rows: int, num_groups: int, tile: int) -> int:
    """The most tiles that T rows in G groups can fill: reached when all groups but one end in a tile of one row."""
    filled = min(num_groups, num_rows)
    return (num_rows - filled) // tile + filled


def run_lengths(tiles: int, tile: int) -> tuple[int, ...]:
    """The lengths, in tiles, of the runs that the XLA path multiplies at once: longest first, the last one tile.

    Every run copies its group's matrix, and on a CPU one long product uses the cores better than two short ones. But
    each length is one more loop to compile, so small tiles (little work) get few.
    """
    lengths = (12, 8, 6, 5, 4, 3, 2, 1) if tile >= 64 else (8, 3, 1)
    return tuple(length for length in lengths if length <= tiles)
