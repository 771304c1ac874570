"""Checkpoints of a run: parameters, optimizer, data state and what they belong to, one directory a step."""

import contextlib
import dataclasses
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mot_jax.errors import CheckpointError, UserError
from mot_jax.parallel.processes import together
from mot_jax.training.checksum import checksums, path_name

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held: `state` as the abstract one asked for it, `data_state` and `meta` as they were saved."""

    step: int
    state: Any
    data_state: dict
    meta: dict


class Checkpoints:
    """The checkpoints under one directory; opened for reading only unless `keep` says how many a writer leaves.

    A step holds four items: `params` and `opt` (arrays), `data` (JSON), `meta` (JSON, which lists each array's shape,
    dtype and checksum too). A step appears whole or not at all.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep: int | None = None, report: Callable[[str], None] | None = None
    ):
        self.directory = epath.Path(directory)
        self._report = report or (lambda line: print(line, file=sys.stderr))
        if keep is None and not self.directory.exists():
            raise CheckpointError(f"{self.directory}: no checkpoints here")
        self._keep = keep

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made on first use, so a writer leaves no trace before it writes."""
        options = (
            ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
            if self._keep is None
            else ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True, cleanup_tmp_directories=True)
        )
        return ocp.CheckpointManager(self._path, options=options)

    @property
    def _path(self) -> epath.Path:
        """Orbax wants an absolute one; gs:// stays as it is."""
        return self.directory if "://" in str(self.directory) else self.directory.resolve()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a save in progress."""
        if "_manager" in vars(self):
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state, data_state: dict, meta: dict, *, wait: bool = False) -> None:
        """Saves in the background once the arrays are copied to the host; `state` may be donated on return.

        Checkpoints of this step or later belong to a history that was left, and are deleted.
        """
        for later in self.steps():
            if later >= step:
                self._manager.delete(later)
        params, opt = _items(state)
        arrays = {"params": _describe(params), "opt": _describe(opt)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt=ocp.args.StandardSave(opt),
                data=ocp.args.JsonSave(data_state),
                meta=ocp.args.JsonSave({"format": FORMAT, "arrays": arrays, **meta}),
            ),
        )
        if wait:
            self._manager.wait_until_finished()

    def restore(
        self, abstract_state, step: int | None = None, check: Callable[[dict], None] = lambda meta: None
    ) -> Restored:
        """The state of a step (default: the newest that loads), on the shardings of `abstract_state`.

        Args:
          check: sees `meta` before arrays are read; the UserError it raises is the answer, no older step is tried.

        Raises:
          CheckpointError: nothing loads, or the stored shapes are another model's; names the parameter and both shapes.
        """

        def load(step: int) -> Restored:
            meta = self._meta(step)
            check(meta)
            items = dict(zip(("params", "opt"), _items(abstract_state), strict=True))
            restored = self._arrays(step, meta, items)
            state = dataclasses.replace(abstract_state, params=restored["params"], **restored["opt"])
            return Restored(step, state, self.data_state(step), meta)

        return self._newest(load, step)

    def restore_params(self, abstract_params: dict, step: int | None = None) -> tuple[int, dict]:
        """(step, parameters) alone, on the shardings of `abstract_params` or, where it has none, on one device.

        Raises:
          CheckpointError: as `restore`.
        """
        return self._newest(
            lambda step: (step, self._arrays(step, self._meta(step), {"params": abstract_params})["params"]), step
        )

    def meta(self, step: int | None = None) -> tuple[int, dict]:
        """(step, what was saved beside the arrays)."""
        return self._newest(lambda step: (step, self._meta(step)), step)

    def data_state(self, step: int) -> dict:
        """Where the data stood at a step."""
        return self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]

    def _newest(self, load: Callable[[int], Any], step: int | None):
        """`load` of the given step, or of the newest one that loads; says which were skipped."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: no checkpoints here")
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; there are {_join(steps)}")
            steps = [step]
        for candidate in reversed(steps):
            loaded, reason = _attempt(load, candidate)
            if reason is None:
                return loaded
            _drop_unfinished_reads()
            reason = f"{self.directory}: checkpoint {candidate} is damaged ({reason})"
            if candidate == steps[0]:
                raise CheckpointError(f"{reason}, and there is no other to fall back to")
            self._report(f"{reason}; skipped, falling back to an older one")

    def _meta(self, step: int) -> dict:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{self.directory}: checkpoint {step} has format {meta['format']}, expected {FORMAT}")
        return meta

    def _array_item(self, step: int, item: str, args: ocp.args.StandardRestore):
        """Past the manager, which waits for other processes in vain where one cannot read its part."""
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return handler.restore(self._path / str(step) / item, args=args)

    def _arrays(self, step: int, meta: dict, abstract: dict) -> dict:
        """The array items asked for, checked against the stored shapes before and the checksums after."""
        for item, tree in abstract.items():
            _check_shapes(f"{self.directory}: checkpoint {step}", meta["arrays"][item], tree)
        asked = {item: ocp.args.StandardRestore(jax.tree.map(_placed, tree)) for item, tree in abstract.items()}
        restored = together(  # one process may read damage that the others do not
            f"restored/{self.directory.parent.name}/{step}",
            lambda: {item: self._array_item(step, item, args) for item, args in asked.items()},
        )
        for item in abstract:
            for name, checksum in checksums(restored[item]).items():
                if checksum != meta["arrays"][item][name]["checksum"]:
                    raise ValueError(f"{item}: {name} differs from its checksum")
        return {item: restored[item] for item in abstract}


def _items(state) -> tuple[dict, dict]:
    """A train state as the items it is stored in: its parameters, and everything else."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields.pop("params"), fields


def _describe(tree) -> dict[str, dict]:
    sums = checksums(tree)
    return {
        path_name(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": sums[path_name(path)]}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_shapes(where: str, stored: dict[str, dict], tree) -> None:
    expected = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name, shape in expected.items():
        if name not in stored:
            raise CheckpointError(f"{where}: has no parameter {name}")
        if tuple(stored[name]["shape"]) != tuple(shape):
            raise CheckpointError(
                f"{where}: parameter {name} has shape {tuple(stored[name]['shape'])}, the model expects {tuple(shape)}"
            )
    if unknown := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{where}: parameter {unknown[0]} is not part of the model ({len(unknown)} in all)")


def _placed(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _attempt(load: Callable[[int], Any], step: int) -> tuple[Any, str | None]:
    """(what was loaded, None), or (None, one line that says why it cannot be)."""
    try:
        return load(step), None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes the libraries raise
        while error.__cause__ is not None:
            error = error.__cause__
        text = str(error).strip() or type(error).__name__
        return None, text.splitlines()[0][:200]


def _drop_unfinished_reads() -> None:
    """Collects what a failed restore leaves running, without its tracebacks on the terminal."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _join(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
