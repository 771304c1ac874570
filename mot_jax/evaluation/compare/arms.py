"""Run directories -> arms: the runs of one config that differ by their seeds."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence

from mot_jax import config
from mot_jax.config.text import ABSENT, differences
from mot_jax.errors import ConfigError, DataError
from mot_jax.evaluation.compare.held_out import held_out_rows, held_out_text
from mot_jax.evaluation.compare.runs import HELD_OUT, FinishedRun, read_run
from mot_jax.training.run_directory import FREE

# What the runs of one arm may differ in; `Eval` but for `batches`, in which no runs that are compared do.
SAME_ARM = {"Train.seed"} | (FREE - {"Train.steps", "Train.init_from"})


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of one config, one a seed."""

    name: str
    runs: tuple[FinishedRun, ...]

    @property
    def sees_future(self) -> bool:
        """Whether routers chose by later tokens: in training, and on held-out data but for auxiliary routers."""
        return config.sees_future(self.runs[0].config.model)

    @property
    def steps(self) -> int:
        """Steps that all of its runs have trained, with those of the runs they go on from."""
        return min(run.steps for run in self.runs)


def arms_of(directories: Sequence[str]) -> tuple[Arm, ...]:
    """In the order given; the first is the reference.

    Raises:
      UserError: a directory that is no run or given twice, runs trained or judged on other data, fewer than two arms.
    """
    if len({os.path.realpath(directory) for directory in directories}) < len(directories):
        raise ConfigError(f"compare: expected different runs, got {', '.join(directories)}")
    found: list[list[FinishedRun]] = []
    for run in map(read_run, directories):
        for arm in found:
            if not _differences(arm[0], run):
                arm.append(run)
                break
        else:
            found.append([run])
    _check_data([run for arm in found for run in arm])
    if len(found) < 2:
        raise ConfigError(
            f"compare: expected a reference and at least one other config, got {len(directories)} "
            f"{'runs of one config' if len(directories) > 1 else 'run'}: {', '.join(directories)}"
        )
    names = [_name([run.directory.name for run in arm]) for arm in found]
    if len(set(names)) < len(names):  # runs/a/mot and runs/b/mot
        names = [os.fspath(arm[0].directory) for arm in found]
    return tuple(Arm(name, tuple(arm)) for name, arm in zip(names, found, strict=True))


def _check_data(runs: Sequence[FinishedRun]) -> None:
    for run in runs:
        if run.splits != runs[0].splits:
            raise DataError(f"compare: {run.directory} was trained on other data than {runs[0].directory}")
    judged = [one for run in runs for one in _with_before(run) if any(line["split"] == HELD_OUT for line in one.lines)]
    for run in judged:
        if held_out_rows(run.config) != held_out_rows(judged[0].config):
            raise DataError(
                f"compare: held-out losses of {run.directory} are over {held_out_text(run.config)}, those of "
                f"{judged[0].directory} over {held_out_text(judged[0].config)}; expected the same (--gin.Eval.batches)"
            )


def _with_before(run: FinishedRun) -> list[FinishedRun]:
    return [run, *(_with_before(run.before) if run.before else ())]


def _name(names: Sequence[str]) -> str:
    """What the names of an arm's directories begin with: `dense` of dense_10 and dense_11."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = "".join(letters[0] for letters in same)
    return (re.sub(r"[_\-.]\d*$", "", prefix) if len(names) > 1 else prefix) or names[0]


def _differences(one: FinishedRun, other: FinishedRun) -> list[str]:
    """`["Model.dim: 128 became 64"]`, but for what no run's losses depend on."""

    begun_alike = (
        one.before and other.before and one.began_at == other.began_at and not _differences(one.before, other.before)
    )
    free = SAME_ARM | ({"Train.init_from"} if begun_alike else set())

    def counts(line: str) -> bool:
        name = line.partition(":")[0].rpartition("/")[2]
        return not {name, name.partition(".")[0]} & free

    return list(filter(counts, differences(one.config, other.config)))


def what_differs(reference: Arm, arm: Arm) -> list[str]:
    """`["Model.untied: () became ('attention',)"]`; a part that one of them lacks is named without its fields."""
    return [line for line in _differences(reference.runs[0], arm.runs[0]) if ABSENT not in line]
