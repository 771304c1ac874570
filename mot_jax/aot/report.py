"""What a compiled step costs, as data, a table and JSON."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from mot_jax.aot import hlo, work
from mot_jax.aot.collectives import Traffic, collectives
from mot_jax.aot.compile import Bytes, Compiled
from mot_jax.aot.topology import Target
from mot_jax.nn import count
from mot_jax.training.flops import run_flops_by_part

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step that each resource needs by itself.

    `memory`: to read and write the state and the activations once, which a step does at least; `moved`: all that the
    program's text seems to move, an estimate. A step takes the longest of `compute`, `memory` and all links at least;
    if nothing overlaps it takes the sum, with `moved`. `links`: by mesh axes; an axis has two
    links for each dimension of the grid that it runs along, as in a ring.
    """

    compute: float
    memory: float
    moved: float
    links: dict[str, float]

    @property
    def least(self) -> float:
        return max(self.compute, self.memory, sum(self.links.values()))

    @property
    def most(self) -> float:
        return self.compute + self.moved + sum(self.links.values())


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one device and step. `flops`: of matrix products in the program, by part; `analytic`: what they should be.

    `stored` and `activated`: parameters of the whole model, by owner or by group of tokens, and part.
    `mfu`: what the analytic count is of the devices' peak, at the roofline; `mfu_serial`: if nothing overlaps.
    What needs the program's text is None or empty where the compiler refused.
    """

    target: str
    chips: int
    devices: int
    mesh: dict[str, int]
    stored: dict[str, dict[str, int]]
    activated: dict[str, dict[str, int]]
    fits: bool
    bytes: Bytes
    tokens: int
    flops: dict[str, float]
    analytic: dict[str, float]
    traffic: list[Traffic]
    memory_traffic: float | None
    roofline: Roofline | None
    mfu: float | None
    mfu_serial: float | None
    unknown_loops: int
    compile_seconds: float


def make_report(compiled: Compiled, target: Target) -> Report:
    run, mesh = compiled.run, compiled.mesh
    tokens = run.data.global_batch_size * run.data.sequence_length
    analytic = {part: each * tokens / mesh.size for part, each in run_flops_by_part(run).items()}
    common = {
        "target": target.description,
        "chips": target.chips,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "stored": count.stored_by_part(run.model),
        "activated": count.activated_by_part(run.model),
        "fits": compiled.fits,
        "bytes": compiled.bytes,
        "tokens": tokens,
        "analytic": analytic,
        "compile_seconds": compiled.seconds,
    }
    if compiled.text is None:
        nothing = dict.fromkeys(("memory_traffic", "roofline", "mfu", "mfu_serial"))
        return Report(**common, **nothing, flops={}, traffic=[], unknown_loops=0)
    module = hlo.parse(compiled.text)
    flops, traffic, moved = work.flops(module), collectives(module, mesh.shape), work.memory_traffic(module)
    counted = sum(found for part, found in flops.items() if part != "recomputed")
    links = {}
    for each in traffic:
        name, rate = " x ".join(each.axes), _rate(each.axes, compiled, target)
        links[name] = links.get(name, 0.0) + (each.sent / rate if rate else 0.0)
    held = compiled.bytes
    once = 2 * (held.parameters + held.optimizer + held.activations)
    roofline = Roofline(counted / target.flops, once / target.bandwidth, moved / target.bandwidth, links)
    useful = sum(analytic.values()) / target.flops
    return Report(
        **common,
        flops=flops,
        traffic=traffic,
        memory_traffic=moved,
        roofline=roofline,
        mfu=useful / roofline.least,
        mfu_serial=useful / roofline.most,
        unknown_loops=module.unknown_loops,
    )


def _rate(axes: tuple[str, ...], compiled: Compiled, target: Target) -> float:
    """Bytes a second that a device can send along mesh axes."""
    mesh = compiled.mesh
    first = mesh.devices[tuple(slice(None) if axis in axes or "?" in axes else 0 for axis in mesh.axis_names)].flat
    places = [getattr(device, "coords", ()) for device in first]
    spanned = sum(len(set(along)) > 1 for along in zip(*places, strict=True))
    return 2 * target.chip.link * max(spanned, 1) / target.chip.devices


def to_json(report: Report) -> str:
    found = dataclasses.asdict(report)
    found["bytes"]["total"] = report.bytes.total
    if report.roofline is not None:
        found["roofline"] |= {"least": report.roofline.least, "most": report.roofline.most}
    return json.dumps(found, indent=2)


def show(report: Report, console: Console) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "one device"
    console.print(f"{report.target}; {mesh}; {report.tokens:,} tokens a step", markup=False, highlight=False)
    _show_bytes(report, console)
    if report.roofline is None:
        return
    _show_flops(report, console)
    if report.traffic:
        _show_traffic(report, console)
    _show_roofline(report, console)


def _show_bytes(report: Report, console: Console) -> None:
    held, each = report.bytes, "device" if report.devices != report.chips else "chip"
    verdict = "fits" if report.fits else "DOES NOT FIT"
    table = _table(f"memory: {verdict}", "kind", f"GiB a {each}")
    for kind in ("parameters", "optimizer", "gradients", "activations", "temporaries", "program"):
        table.add_row(kind, f"{getattr(held, kind) / GIB:,.2f}")
    table.add_row("total", f"{held.total / GIB:,.2f}", style="bold")
    table.add_row("there is", f"{held.limit / GIB:,.2f}")
    console.print(table)


def _show_flops(report: Report, console: Console) -> None:
    table = _table("FLOPs a step, all devices", "part", "compiled", "analytic", "ratio")
    recomputed = report.flops["recomputed"]
    for part in (*report.analytic, "other"):
        count, wanted = report.flops.get(part, 0.0), report.analytic.get(part, 0.0)
        if count or wanted:
            _flops_row(table, part, count, wanted, report.devices)
    total = sum(report.flops.values()) - recomputed
    _flops_row(table, "total", total, sum(report.analytic.values()), report.devices)
    if recomputed:
        _flops_row(table, "of it recomputed", recomputed, 0.0, report.devices)
    console.print(table)


def _flops_row(table: Table, name: str, count: float, wanted: float, devices: int) -> None:
    ratio = f"{count / wanted:.2f}" if wanted else ""
    table.add_row(name, f"{count * devices:.3e}", f"{wanted * devices:.3e}" if wanted else "", ratio)


def _show_traffic(report: Report, console: Console) -> None:
    table = _table("sent by each device a step", "collective", "mesh axes", "times", "MiB")
    for each in report.traffic:
        table.add_row(each.operation, " x ".join(each.axes), f"{each.count:,}", f"{each.sent / 2**20:,.2f}")
    console.print(table)


def _show_roofline(report: Report, console: Console) -> None:
    roofline = report.roofline
    table = _table("roofline, a step", "bound", "ms")
    table.add_row("matrix units", f"{roofline.compute * 1e3:,.2f}")
    table.add_row("memory, state and activations once", f"{roofline.memory * 1e3:,.2f}")
    table.add_row(f"memory, {report.memory_traffic / GIB:,.1f} GiB by estimate", f"{roofline.moved * 1e3:,.2f}")
    for axes, seconds in roofline.links.items():
        table.add_row(f"links, {axes}", f"{seconds * 1e3:,.2f}")
    table.add_row("step at least, all overlapped", f"{roofline.least * 1e3:,.2f}", style="bold")
    table.add_row("step if nothing overlaps", f"{roofline.most * 1e3:,.2f}")
    console.print(table)
    notes = [f"MFU at most {report.mfu:.1%}, {report.mfu_serial:.1%} if nothing overlaps"]
    notes.append(f"compiled in {report.compile_seconds:.0f} s")
    if report.unknown_loops:
        notes.append(f"{report.unknown_loops} loops of unknown length count as one turn")
    console.print("; ".join(notes), markup=False, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column != "mesh axes" else "left")
    return table
