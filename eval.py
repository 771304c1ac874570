"""Evaluates a run on held-out data, or compares runs: `python eval.py --run_dir DIR`; `--help` says more."""

import sys

from mot_jax.cli import parse_compare, parse_eval, run_main


def main(argv: list[str]) -> None:
    if argv[:1] == ["compare"]:
        arguments = parse_compare(argv[1:])
        from mot_jax.evaluation.compare.command import compare_runs

        compare_runs(arguments)
        return
    arguments = parse_eval(argv)
    from mot_jax.evaluation.evaluate import evaluate

    evaluate(arguments.run_dir, arguments.run, step=arguments.step)


if __name__ == "__main__":
    sys.exit(run_main(main))
