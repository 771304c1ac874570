"""How many rows a tile holds, from the shapes alone: never from the platform, so a layout means the same everywhere."""


def choose_tile(num_rows: int, num_groups: int) -> int:
    """Rows per tile: a power of two near T / (5 G), from 8 (decoding) to 512.

    A group wastes half a tile on average, so this keeps the padding near a tenth of the rows.
    """
    share = num_rows // (5 * max(num_groups, 1))
    return min(512, max(8, 1 << max(share - 1, 0).bit_length()))


def num_tiles(num_rows: int, num_groups: int, tile: int) -> int:
    """The most tiles that T rows in G groups can fill: every group but the fullest ends in a tile of one row."""
    filled = min(num_groups, num_rows)
    return (num_rows - filled) // tile + filled
