"""`python eval.py compare RUN_A RUN_B ...`."""

import importlib.util

from etils import epath
from rich.console import Console

from mot_jax.cli import CompareArguments
from mot_jax.evaluation.compare.arms import arms_of
from mot_jax.evaluation.compare.figure import draw
from mot_jax.evaluation.compare.report import Comparison, compare, to_json
from mot_jax.evaluation.compare.table import show
from mot_jax.evaluation.evaluate import write_json
from mot_jax.training.progress import say

FILE = "compare.json"


def compare_runs(arguments: CompareArguments) -> Comparison:
    """Prints the comparison; writes it, with a figure a modality, where `arguments.out` says.

    Raises:
      UserError: directories that are no runs, or runs that cannot be compared.
    """
    console = Console()
    found = compare(arms_of(arguments.run_dirs))
    show(found, console)
    if arguments.out is None:
        return found
    directory = epath.Path(arguments.out)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / FILE, to_json(found))
    if importlib.util.find_spec("matplotlib") is None:
        say(console, "no figures: they need matplotlib (pip install 'mot_jax[logging]')")
    else:
        for modality in dict.fromkeys(modality for _, modality in found.losses):
            draw(found, modality, directory / f"{modality}.png")
    say(console, f"wrote {directory}")
    return found
