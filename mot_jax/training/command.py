"""What `python train.py` does: reads its flags, then trains, or compiles for a machine that is not there."""

import os
import sys

from etils import epath

from mot_jax.aot.topology import parse_target
from mot_jax.cli import parse_train, run_main
from mot_jax.errors import ConfigError
from mot_jax.parallel.processes import join, started, watched
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.training.run_directory import check_directory, new_directory


def main(argv: list[str]) -> int:
    arguments = parse_train(argv)
    if arguments.aot is not None:
        target = parse_target(arguments.aot)
        os.environ["JAX_PLATFORMS"] = "cpu"  # or jax looks for the hardware
        from mot_jax.aot.command import ahead_of_time

        return ahead_of_time(arguments.run, target, arguments.json)
    run_dir = epath.Path(arguments.run_dir) if arguments.run_dir else new_directory(arguments.name)
    check_directory(run_dir, arguments.resume, arguments.run)  # refuses at once, before the slow imports

    keep_freed_pages()  # before jax starts threads that allocate
    if processes := started(arguments.processes):
        if arguments.run_dir is None:
            raise ConfigError("--run_dir: expected a directory that all processes share")
        join(processes)
    import jax

    devices = jax.devices()
    if jax.process_index() == 0:
        several = f", {jax.process_count()} processes" if processes else ""
        print(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){several}", flush=True)

    from mot_jax.training.loop import train

    with watched(processes):
        return train(arguments.run, run_dir, arguments.resume, arguments.config_text)


if __name__ == "__main__":
    sys.exit(run_main(main))
