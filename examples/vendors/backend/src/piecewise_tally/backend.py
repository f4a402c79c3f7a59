"""Runs one piece, in place of core's PiecewiseBackend: looks the sizes up itself, and counts."""

from collections import Counter


class TallyBackend:
    """Keeps the code of each target, and how often each was called.

    Has no ``runnable``, so that core calls it at every call. ``backend`` owns the piece: it knows
    the targets, compiles for one of them, and takes from the store or a bundle what is there.
    """

    def __init__(
        self,
        graph,
        config,
        graph_pool,
        piecewise_compile_index,
        total_piecewise_compiles,
        sym_shape_indices,
        compiled_graph_for_general_shape,
        backend,
        **kwargs,
    ):
        self.calls = Counter()
        self._index = piecewise_compile_index
        self._places = sym_shape_indices
        self._general = compiled_graph_for_general_shape
        self._owner = backend
        self._code = {}

    def __call__(self, *args):
        """Run the piece for the sizes among ``args``."""
        found = self._owner.table.find(*(args[place] for place in self._places))
        self.calls[found] += 1
        if found not in self._code:
            self._code[found] = self._made(found)
        return self._code[found](*args)

    def _made(self, found):
        if found == self._owner.table.miss:  # outside of the bounds: for out_of_range="general"
            return self._general()
        return self._owner.compile_piece(self._index, self._owner.targets[found].box)
