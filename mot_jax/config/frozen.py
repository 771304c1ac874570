"""A mapping as a value."""


class FrozenMapping(dict):
    """A dict that can be a field of a hashable config; never changed after construction."""

    def __hash__(self):
        return hash(frozenset(self.items()))
