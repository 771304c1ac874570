"""Checkpoints of a run: parameters, optimizer, data state and what they belong to, one directory a step."""

import contextlib
import dataclasses
import functools
import gc
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mot_jax.errors import CheckpointError, UserError
from mot_jax.parallel.processes import together
from mot_jax.training import checkpoint_meta
from mot_jax.training.checkpoint_meta import Damaged
from mot_jax.training.checksum import path_name
from mot_jax.training.quiet import join_failed_save, quiet_checkpointing


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
    dtype and checksum, and the checksums of both JSON items). A step appears whole or not at all.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep: int | None = None, report: Callable[[str], None] | None = None
    ):
        self.directory = epath.Path(directory)
        self._report = report or (lambda line: print(line, file=sys.stderr))
        if keep is None and not self.directory.exists():
            raise CheckpointError(f"{self.directory}: no checkpoints here")
        self._keep, self._quiet = keep, contextlib.ExitStack()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made on first use, so a writer leaves no trace before it writes."""
        options = (
            ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
            if self._keep is None
            else ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True, cleanup_tmp_directories=True)
        )
        self._quiet.enter_context(quiet_checkpointing())
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
        """Waits for a save in progress; raises CheckpointError where it could not be written."""
        if "_manager" in vars(self):
            with self._quiet, self._writing():
                self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Until the save in progress is complete; raises CheckpointError where it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def save(self, step: int, state, data_state: dict, meta: dict, *, wait: bool = False) -> None:
        """Saves in the background once the arrays are copied to the host; `state` may be donated on return.

        Checkpoints of this step or later belong to a history that was left, and are deleted.

        Raises:
          CheckpointError: this checkpoint, or the one before it, could not be written; those before are as they were.
        """
        params, opt = _items(state)
        arrays = {"params": checkpoint_meta.describe(params), "opt": checkpoint_meta.describe(opt)}
        with self._writing():
            for later in self.steps():
                if later >= step:
                    self._manager.delete(later)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    opt=ocp.args.StandardSave(opt),
                    data=ocp.args.JsonSave(data_state),
                    meta=ocp.args.JsonSave(checkpoint_meta.sealed(arrays, data_state, meta)),
                ),
            )
        if wait:
            self.wait()

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
            meta = self.meta(step)
            check(meta)
            items = dict(zip(("params", "opt"), _items(abstract_state), strict=True))
            restored = self.arrays(step, meta, items)
            state = dataclasses.replace(abstract_state, params=restored["params"], **restored["opt"])
            return Restored(step, state, self.data_state(step, meta), meta)

        return self.newest(load, step)

    def restore_params(self, abstract_params: dict, step: int | None = None) -> tuple[int, dict]:
        """(step, parameters) alone, on the shardings of `abstract_params` or, where it has none, on one device.

        Raises:
          CheckpointError: as `restore`.
        """
        return self.newest(
            lambda step: (step, self.arrays(step, self.meta(step), {"params": abstract_params})["params"]), step
        )

    def newest(self, load: Callable[[int], Any], step: int | None = None) -> Any:
        """`load` of the given step, or of the newest one that loads; says which were skipped.

        Raises:
          CheckpointError: there is none, or none loads. What `load` raises as a UserError is the answer.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.directory}: no checkpoints here")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"{self.directory}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
            )
        for candidate in reversed(steps if step is None else [step]):
            loaded, reason = _attempt(load, candidate)
            if reason is None:
                return loaded
            gc.collect()  # what the failed restore leaves running, while its complaints are muted
            reason = f"{self.directory}: checkpoint {candidate} is damaged ({reason})"
            if step is not None:
                raise CheckpointError(reason)
            if candidate == steps[0]:
                raise CheckpointError(f"{reason}, and there is no other to fall back to")
            self._report(f"{reason}; skipped, falling back to an older one")

    def meta(self, step: int) -> dict:
        """What was saved beside the arrays; raises Damaged where it is not, as all below."""
        meta = self._read(step, "meta", ocp.args.JsonRestore())
        return checkpoint_meta.opened(f"{self.directory}: checkpoint {step}", meta)

    def data_state(self, step: int, meta: dict) -> dict:
        """Where the data stood at a step."""
        data_state = self._read(step, "data", ocp.args.JsonRestore())
        checkpoint_meta.check_data(meta, data_state)
        return data_state

    def arrays(self, step: int, meta: dict, abstract: dict) -> dict:
        """The array items asked for: shapes are checked before reading, checksums after, and dtypes converted last."""
        for item, tree in abstract.items():
            checkpoint_meta.check_shapes(f"{self.directory}: checkpoint {step}", meta["arrays"][item], tree)
        stored = {item: _as_stored(meta["arrays"][item], tree) for item, tree in abstract.items()}
        restored = together(  # one process may read damage that the others do not
            f"restored/{self.directory.parent.name}/{step}",
            lambda: {item: self._array_item(step, item, tree) for item, tree in stored.items()},
        )
        for item in abstract:
            checkpoint_meta.check_arrays(meta, item, restored[item])
        return {
            item: jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), restored[item], tree)
            for item, tree in abstract.items()
        }

    def _array_item(self, step: int, item: str, tree):
        """Past the manager, which waits for other processes in vain where one cannot read its part."""
        with _as_damage(item), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return handler.restore(self._path / str(step) / item, args=ocp.args.StandardRestore(tree))

    def _read(self, step: int, item: str, args):
        with _as_damage(item):
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Failures of the disk as a CheckpointError that says what is safe."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            join_failed_save()
            place = self.directory
            steps = [int(path.name) for path in place.iterdir() if path.name.isdigit()] if place.exists() else []
            kept = f"the newest complete one is of step {max(steps)}" if steps else "there is no complete one"
            raise CheckpointError(
                f"{self.directory}: a checkpoint could not be written ({_reason(error)}); {kept}"
            ) from error


def _items(state) -> tuple[dict, dict]:
    """A train state as the items it is stored in: its parameters, and everything else."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields.pop("params"), fields


def _as_stored(stored: dict[str, dict], tree):
    """What to read: as stored, so that checksums are of that, on the asked-for sharding or else one device."""

    def one(path, leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(np.shape(leaf), stored[path_name(path)]["dtype"], sharding=sharding)

    return jax.tree_util.tree_map_with_path(one, tree)


@contextlib.contextmanager
def _as_damage(item: str) -> Iterator[None]:
    """Whatever a damaged file makes the libraries raise, as Damaged."""
    try:
        yield
    except Exception as error:
        raise Damaged(f"{item} cannot be read: {_reason(error)}") from error


def _attempt(load: Callable[[int], Any], step: int) -> tuple[Any, str | None]:
    """(what was loaded, None), or (None, one line that says why it cannot be)."""
    try:
        return load(step), None
    except UserError:
        raise
    except Exception as error:  # a part that is missing from what was read, say
        return None, _reason(error)


def _reason(error: BaseException) -> str:
    """One line of what was wrong in the first place."""
    while error.__cause__ is not None and not isinstance(error, Damaged):
        error = error.__cause__
    if isinstance(error, Damaged):
        return str(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    # tensorstore tells all layers that an array is read through: the array is among the first, the fault is the last
    text = re.sub(r'^([A-Z_]+: )?(Error opening "\w+" driver: )*| \[\w+(\[\d+\])?=.*', "", text)
    first, *others = re.split(r'(?<=[")\w]): (?=[A-Z])', text)
    return ": ".join((first, *others[-1:]))[:300]
