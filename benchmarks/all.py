"""Every benchmark in turn, each a process of its own, and one table of what they found, ratios first.

    python benchmarks/all.py [--only NAME ...] [--out DIR]

DIR (default: runs/benchmarks) gets results.md and results.json, and each part's own JSON and log. A part that fails is
named and the others go on; the exit code is 1 then. What DIR holds of other parts of the same day and machine stays in
the table, so that one part can be run again.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from kernels_pallas.ahead_of_time import missing
from mot_jax.cli import Parser, parse_flags, run_main
from mot_jax.errors import ConfigError, nearest
from mot_jax.training.progress import duration_text

HERE = pathlib.Path(__file__).parent
PARTS = (  # in the order of the table
    *("architectures", "step_time", "decode", "grouped_matmul", "memory", "product_key", "embedding_bag"),
    *("compile_time", "data_pipeline", "save_time", "static_schedule", "pytorch_peer"),
)
COLUMNS = ("ratio", "against", "what", "metric", "value", "unit", "part")


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The parts of these names, all for none.

    Raises:
      ConfigError: there is no part of a name.
    """
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"--only: no benchmark {name!r}{nearest(name, PARTS)}")
    return tuple(name for name in PARTS if name in names or not names)


def lacking() -> dict[str, str]:
    """The parts that need what is not installed, and what that is."""
    found = {"static_schedule": missing("v5e") or missing("h100")}
    if importlib.util.find_spec("torch") is None:
        found["pytorch_peer"] = "needs torch: pip install -e '.[peer]'"
    return {name: reason for name, reason in found.items() if reason}


def run_part(name: str, out: pathlib.Path) -> str | None:
    """Runs one part; says why it failed, None if it did not."""
    with open(out / f"{name}.log", "w") as log:
        command = [sys.executable, os.fspath(HERE / f"{name}.py"), "--json", os.fspath(out / f"{name}.json")]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if not code:
        return None
    lines = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return f"{lines[-1].strip() if lines else 'no output'} (exit code {code}; {out / name}.log)"


def read_parts(out: pathlib.Path, made: Sequence[str]) -> dict[str, dict]:
    """What the directory holds of each part; of those not just made, none of another day or machine than the newest."""
    files = {name: out / f"{name}.json" for name in PARTS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    if not found:
        return {}
    newest = found[max(found, key=lambda name: files[name].stat().st_mtime)]
    same = ("machine", "versions", "date")  # a run of all may go past midnight
    return {name: part for name, part in found.items() if name in made or all(part[key] == newest[key] for key in same)}


def merge(parts: Mapping[str, dict]) -> list[dict]:
    """One row each, with its part: those with a ratio first, else in the order of the parts."""
    rows = [
        {"ratio": row["ratio"], "against": row["against"], "what": row["name"]}
        | {key: row[key] for key in ("metric", "value", "unit")}
        | {"part": name}
        for name, part in parts.items()
        for row in part["rows"]
    ]
    return sorted(rows, key=lambda row: row["ratio"] is None)


def markdown(parts: Mapping[str, dict]) -> str:
    """The table with what it was measured on."""
    first = next(iter(parts.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [f"{first['machine'].partition(', jax')[0]}; {versions}; {first['date']}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---:|---|---|---|---:|---|---|"]
    for row in merge(parts):
        cells = (_text(row[column]).replace("|", "\\|") for column in COLUMNS)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _text(value: float | str | None) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(argv: list[str]) -> int:
    parser = Parser("benchmarks/all.py", __doc__, f"benchmarks: {', '.join(PARTS)}")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these benchmarks")
    parser.add_argument("--out", default="runs/benchmarks", metavar="DIR", help="default: %(default)s")
    arguments, _ = parse_flags(parser, argv)
    names, out = chosen(arguments.only), pathlib.Path(arguments.out)
    for name, reason in lacking().items() if not arguments.only else ():
        print(f"left out: {name}: {reason}", flush=True)
        names = tuple(other for other in names if other != name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {error.strerror}: {out}; expected a directory") from error
    failed = []
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)}: {name}", flush=True)
        (out / f"{name}.json").unlink(missing_ok=True)
        began = time.monotonic()
        if reason := run_part(name, out):
            failed.append(name)
            print(f"failed: {name}: {reason}", file=sys.stderr, flush=True)
        else:
            print(f"done: {name} after {duration_text(time.monotonic() - began)}", flush=True)
    if parts := read_parts(out, names):
        (out / "results.md").write_text(table := markdown(parts))
        head = {key: next(iter(parts.values()))[key] for key in ("machine", "versions", "date")}
        (out / "results.json").write_text(json.dumps({**head, "rows": merge(parts)}, indent=1))
        print(f"\n{table}\n{out / 'results.md'}, {out / 'results.json'}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
