"""Trains a model: `python train.py --help`."""

import sys

from mot_jax.cli import parse_train, run_main


def main(argv: list[str]) -> int:
    arguments = parse_train(argv)

    import jax

    devices = jax.devices()
    print(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})", flush=True)

    from mot_jax.training.loop import train

    return train(arguments.run, arguments.run_dir, arguments.resume, arguments.config_text, arguments.name)


if __name__ == "__main__":
    sys.exit(run_main(main))
