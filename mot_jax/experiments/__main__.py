"""`python -m mot_jax.experiments SWEEP --dir DIR`."""

import sys

from etils import epath
from rich.console import Console

from mot_jax.cli import CompareArguments, Parser, add_import, parse_flags, run_main
from mot_jax.errors import ConfigError
from mot_jax.experiments.learning_rates import Choice, choose
from mot_jax.experiments.read_sweep import read_sweep
from mot_jax.experiments.runner import train_all
from mot_jax.experiments.sweep import jobs, run_directory, search_jobs
from mot_jax.training.progress import say

_EXAMPLES = """A sweep is a TOML file or the name of one in configs/sweeps. What is done is skipped.

examples:
  python -m mot_jax.experiments components
  python -m mot_jax.experiments architectures --dir runs/architectures --at_once 2
  python -m mot_jax.experiments mine.toml --import my.module"""


def main(argv: list[str]) -> None:
    """Trains what a sweep lacks, chooses learning rates where it asks for that, and compares arms with references."""
    parser = Parser("-m mot_jax.experiments", "Trains a set of configs and seeds, and compares them.", _EXAMPLES)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="the sweep")
    parser.add_argument("--dir", metavar="DIR", help="where its runs and the comparison go (default: runs/<sweep>)")
    parser.add_argument("--at_once", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    add_import(parser, "a module of yours with sources, codecs or config classes, for every run")
    arguments, _ = parse_flags(parser, argv)
    if arguments.sweep is None:
        raise ConfigError("expected a sweep, as in python -m mot_jax.experiments components")
    sweep, console = read_sweep(arguments.sweep), Console()
    directory = epath.Path(arguments.dir or f"runs/{sweep.name}")

    def note(text: str) -> None:
        say(console, text)

    if arguments.at_once < 1:
        raise ConfigError(f"--at_once: expected at least 1, got {arguments.at_once}")
    # Slow imports, after all that can be refused.
    from mot_jax.evaluation.compare.command import compare_runs
    from mot_jax.evaluation.evaluate import write_json

    how = arguments.at_once, note, arguments.modules
    choices: dict[str, Choice] = {}
    if sweep.learning_rates:
        searches = search_jobs(sweep, directory)
        train_all([job for by_rate in searches.values() for job in by_rate.values()], *how)
        choices = {arm: choose(by_rate) for arm, by_rate in searches.items()}
        for arm, choice in choices.items():
            losses = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in choice.losses.items())
            edge = "; at the edge of what was tried" if choice.at_edge else ""
            note(f"learning rate of {arm}: {choice.rate:g} (held-out losses {losses}){edge}")
        write_json(directory / "learning_rates.json", {arm: choice.as_json() for arm, choice in choices.items()})
    todo = jobs(sweep, directory, {arm: choice.rate for arm, choice in choices.items()})
    train_all(todo, *how)
    compared = sweep.comparisons
    for reference, candidates in compared.items():
        runs = [run_directory(directory, arm, seed) for arm in (reference, *candidates) for seed in sweep.seeds]
        place = directory / "compare" / (reference if len(compared) > 1 else "")
        compare_runs(CompareArguments(tuple(map(str, runs)), str(place)))


if __name__ == "__main__":
    sys.exit(run_main(main))
