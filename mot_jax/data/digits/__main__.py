"""Prepares the digits into the cache and prints where: python -m mot_jax.data.digits [--gin.Digits.image_size=24 …]."""

import sys

from mot_jax.cli import run_main
from mot_jax.errors import ConfigError


def main(argv: list[str]) -> None:
    """Takes bindings only; raises ConfigError for anything else."""
    if set(argv) & {"-h", "--help"}:
        print(__doc__)
        return
    bindings = ["Data.source = @Digits()"]
    for argument in argv:
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not argument.startswith("--gin.") or not equals:
            raise ConfigError(f"{argument}: expected --gin.Digits.<field>=<value>, as in --gin.Digits.image_size=24")
        bindings.append(f"{name} = {value}")
    from mot_jax.gin_config import load_run

    run, _ = load_run(bindings=bindings)
    from rich.console import Console
    from rich.progress import Progress

    from mot_jax.data.cache import ensure_dataset

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0)
        directory = ensure_dataset(
            run.data, lambda what, fraction: progress.update(task, description=what, completed=fraction)
        )
    print(directory)


if __name__ == "__main__":
    sys.exit(run_main(main))
