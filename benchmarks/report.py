"""What every benchmark here shares: alternating timings, a table, and one JSON shape."""

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def machine() -> str:
    """Devices, jax and Python versions."""
    device = jax.devices()[0]
    cores = f"{_processor()}, {os.cpu_count()} cores"
    name = f"{device.device_kind} x{jax.device_count()}" if device.platform != "cpu" else f"cpu ({cores})"
    return f"{name}, jax {jax.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    """As Linux names it; elsewhere its architecture."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, the functions taking turns so that what else the machine does hits all alike."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def row(name: str, seconds: Sequence[float], against: str, baseline: Sequence[float]) -> dict:
    """One row: the median in milliseconds, and the median over rounds of the ratio to the baseline."""
    ratio = float(np.median(np.asarray(seconds) / np.asarray(baseline)))
    return {
        "name": name,
        "metric": "time",
        "value": 1e3 * float(np.median(seconds)),
        "unit": "ms",
        "against": against,
        "ratio": ratio,
    }


def figure(
    name: str, metric: str, value: float, unit: str, against: str | None = None, ratio: float | None = None
) -> dict:
    """One row of anything else; `ratio` is what was found over that of `against`."""
    return {"name": name, "metric": metric, "value": value, "unit": unit, "against": against, "ratio": ratio}


def show(title: str, rows: Sequence[dict], path: str | None) -> None:
    """Prints the table, and writes it as JSON where a path is given, with machine, versions and date.

    What a benchmark adds to its rows is a column of numbers more.
    """
    table = Table(title=f"{title} ({machine()})")
    columns = list(dict.fromkeys(key for r in rows for key in r))
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "metric", "unit", "against") else "right")
    for r in rows:
        values = map(r.get, columns)
        table.add_row(*("" if v is None else f"{v:,.3f}" if isinstance(v, float) else str(v) for v in values))
    Console(width=120).print(table)
    if path:
        date = datetime.date.today().isoformat()
        found = {"title": title, "machine": machine(), "versions": versions(), "date": date, "rows": list(rows)}
        with open(path, "w") as file:
            json.dump(found, file, indent=1)
