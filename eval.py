"""Evaluates a run on held-out data: `python eval.py --run_dir DIR`; `--help` says more."""

import sys

from mot_jax.cli import parse_eval, run_main


def main(argv: list[str]) -> None:
    arguments = parse_eval(argv)
    from mot_jax.evaluation.evaluate import evaluate

    evaluate(arguments.run_dir, arguments.run, step=arguments.step)


if __name__ == "__main__":
    sys.exit(run_main(main))
