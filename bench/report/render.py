"""``msdeform bench render``: every table and plot of the documentation, drawn anew from the recorded rows.

A file of Markdown says where: between ``<!-- rendered NAME -->`` and ``<!-- end of NAME -->`` stands what
:data:`BLOCKS` makes of the rows, and nothing that a hand wrote. ``--check`` changes nothing, and names what is not up
to date.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...common.files import atomic_file
from ...common.options import nearest
from ..cpu import tables as cpu_tables
from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import Line, fields, lines_of, markdown, numbers
from ..models import explain, exports, spread
from ..models.published import PUBLISHED
from ..models.training import benchmark as training
from ..operator import cases
from ..options import RenderOptions
from ..static import counts, model
from . import plots, tables

_BLOCK = re.compile(r"(<!-- rendered ([\w-]+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
_NONE = "No such row is recorded yet."


def run(options: RenderOptions) -> int:
    """``msdeform bench render``: writes, or with --check compares; returns 1 where something was not up to date."""
    found = records.read_and_warn(options.results)
    stale = {path: content for path, content in rendered(options.root, found).items() if not _same(path, content)}
    for path, content in stale.items():
        print(f"{path.relative_to(options.root)} {'differs from its rows' if options.check else 'rendered'}")
        if not options.check:
            with atomic_file(path) as file:
                file.write(content())
    if not stale:
        print("every table and plot is that of its rows")
    return 1 if stale and options.check else 0


Content = Callable[[], bytes]


def rendered(root: Path, found: Records) -> dict[Path, Content]:
    """What each file of the documentation, and each plot that it shows, has to hold."""
    files: dict[Path, Content] = {}
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text()
        plotted: list[Plot] = []

        def fill(block: re.Match[str], plotted: list["Plot"] = plotted) -> str:
            if block[2] not in BLOCKS:
                raise ValueError(nearest("rendered block", block[2], list(BLOCKS)))
            return f"{block[1]}{BLOCKS[block[2]](found, plotted).strip()}\n{block[4]}"

        filled = _BLOCK.sub(fill, text)
        if path.parent == root:  # plots have one place, whichever page shows them
            filled = filled.replace("](plots/", "](docs/plots/")
        files[path] = lambda new=filled: new.encode()  # type: ignore[misc]
        for plot in plotted:
            files[root / "docs" / plot.path] = plot
    return files


@dataclass(frozen=True)
class Plot:
    """A plot that a page shows: its file, what its rows digest to, and how to draw it."""

    path: str
    digest: str
    draw: Callable[[], object]

    def __call__(self) -> bytes:
        return plots.svg(self.draw(), self.digest)


Block = Callable[[Records, list[Plot]], str]
"""what stands in a block: of the rows; adds the plots that it shows"""


def _same(path: Path, content: Content) -> bool:
    if not path.is_file():
        return False
    if isinstance(content, Plot):  # not drawn to be compared: another matplotlib draws the same rows otherwise
        return f"rows {content.digest}" in path.read_text()
    return path.read_bytes() == content()


def _machines(found: Records, kind: str) -> dict[str, list[Row]]:
    """Rows of a kind by the machine they were measured on."""
    machines: dict[str, Records] = {}
    for row in found.rows:
        if row["kind"] == kind:
            name = row["device"] if row["device"] != "cpu" else f"CPU: {row['host_cpu']}"
            machines.setdefault(name, Records()).rows.append(row)
    return {name: machine.of(kind) for name, machine in machines.items()}


def _from(rows: Iterable[Row], how: str = "Measured") -> str:
    """The line below a table: where its rows come from."""
    rows = list(rows)

    def every(name: str) -> str:
        return ", ".join(dict.fromkeys(str(row.get(name)) for row in rows))

    commits = ", ".join(
        dict.fromkeys(f"{str(row.get('commit'))[:7]}{' and changes' if row.get('dirty') else ''}" for row in rows)
    )
    loads = [row["host_load"] for row in rows if row.get("host_load") is not None]
    load = f"; {min(loads)} to {max(loads)} threads wanted to run" if loads else ""
    dates = sorted({str(row["date"])[:10] for row in rows})
    threads = f"{every('host_threads')} threads" if every("device") == "cpu" else every("device")
    return (
        f"{how} {' to '.join(dict.fromkeys((dates[0], dates[-1])))} at commit {commits}; {threads}; "
        f"torch {every('torch')}, Triton {every('triton')}{load}."
    )


def _plot(plotted: list[Plot], name: str, digest: str, draw: Callable[[], object], shows: str) -> str:
    """Adds a plot; returns the image of a page that shows it."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plot = Plot(f"plots/{slug}.svg", digest, draw)
    plotted.append(plot)
    return f"![{shows}]({plot.path})"


def _joined(parts: Iterable[str], otherwise: str = _NONE) -> str:
    return "\n\n".join(parts) or otherwise


def _operator(found: Records, plotted: list[Plot]) -> str:
    parts = []
    for machine, rows in _machines(found, "operator").items():
        parts += [f"**{machine}**", markdown(tables.speeds(rows), 5)]
        composed = {row["backend"]: row["composed"] for row in rows if row["composed"]}
        notes = [f"`{name}`*: {what} in PyTorch are part of its time." for name, what in composed.items()]
        parts.append(" ".join([*notes, *tables.fastest(rows), _from(rows)]))
        shown = plots.speedups(rows)
        for baseline in dict.fromkeys(row["baseline"] for row in shown):
            mine = [row for row in shown if row["baseline"] == baseline]
            draw = partial(plots.speedup, mine, baseline)
            shows = f"times faster than {baseline}, {machine}"
            parts.append(_plot(plotted, f"speed {machine} {baseline}", plots.speedup_digest(mine), draw, shows))
    return _joined(parts)


def _coverage(found: Records, _: list[Plot]) -> str:
    missing = _machines(found, "missing")
    parts = []
    for machine, rows in _machines(found, "operator").items():
        lines = tables.coverage(rows, missing.get(machine, []))
        parts += [f"**{machine}**", markdown(lines, len(lines[0]))]
    return _joined(parts)


def _bounds(found: Records, plotted: list[Plot]) -> str:
    parts = []
    for machine, rows in _machines(found, "operator").items():
        if shown := plots.roofs(rows):
            parts += [f"**{machine}**", markdown(tables.floors(shown), 6), _from(shown)]
            digest, shows = plots.roofline_digest(shown), f"floors over measured times, {machine}"
            parts.append(_plot(plotted, f"roofline {machine}", digest, partial(plots.roofline, shown), shows))
    return _joined(parts, "No row of a GPU is recorded yet, and only those have floors.")


def _instructions(found: Records, _: list[Plot]) -> str:
    """Counts of every kernel, and how the PTX of our CUDA backend compares with the official kernel's."""
    parts = []
    for case in (counts.ENCODER, counts.DECODER):
        lines = counts.table(found, case)
        if len(lines) > 1:
            parts += [f"**{case}**", markdown(lines, 3)]
    if not parts:
        return _NONE
    compared = [
        f"{call}: {ours['warp_instructions'] / theirs['warp_instructions'] - 1:+.0%}"
        for call, ours, theirs in counts.pairs(found, "cuda", "official")
    ]
    against = f"PTX instructions of `cuda` against the official kernel: {'; '.join(compared)}."
    rows = [row for run in counts.latest(found).values() for row in run]
    not_counted = "The official kernel's instructions were not counted."
    return _joined([*parts, against if compared else not_counted, _from(rows, "Counted")])


def _before_and_after(found: Records, _: list[Plot]) -> str:
    lines = counts.before_and_after(found, counts.ENCODER)
    return markdown(lines, 2) if len(lines) > 1 else "No count has changed since the first that were recorded."


def _predicted(found: Records, _: list[Plot]) -> str:
    lines = model.table(found)
    return markdown(lines, 3) if len(lines) > 1 else _NONE


def _models(found: Records, _: list[Plot]) -> str:
    counted = {row["model"]: row for row in found.of("flops")}
    trained = {(row["model"], row["epochs"]): row for row in found.of("trained")}
    head = ("", "epochs", "AP", "AP_S", "AP_M", "AP_L", "hours", "params M", "counted", "FLOPs G", "counted")
    lines: list[Line] = [(*head, "V100 FPS", "batch 4", "our AP, AP_S, AP_M, AP_L")]
    for row in PUBLISHED:
        count = counted.get(row.model)
        run = trained.get((row.model, row.epochs))
        cells = (
            *(row.epochs, row.ap, row.ap_s, row.ap_m, row.ap_l, row.hours, row.parameters_m),
            "not counted" if count is None else f"{count['parameters'] / 1e6:.2f}",
            row.flops_g,
            "not counted" if count is None else f"{count['multiply_adds'] / 1e9:.1f}",
            *(row.fps, row.fps_4),
            "not trained" if run is None else _run(run),
        )
        lines.append((f"{row.title} (`{row.model}`)", *map(str, cells)))
    parts = [markdown(lines, 1)]
    if counted:
        parts.append(f"Counted by `msdeform table --flops`, which prints the convention. {_from(counted.values())}")
    return _joined(parts)


def _run(row: Row) -> str:
    """A training run's AP, with links to its configuration, log and checkpoint."""
    ap = ", ".join(f"{row[name]:.1f}" for name in ("ap", "ap_s", "ap_m", "ap_l"))
    return f"{ap} ({', '.join(f'[{name}]({row[name]})' for name in ('config', 'log', 'checkpoint'))})"


def _speeds(kind: str, **columns: str) -> Block:
    """A renderer of a line for each detector and way of running it, by machine: fields of a row by their titles."""
    names = records.KEYS[kind]

    def image(row: Row) -> str:
        return "failed" if row["failure"] is not None else "x".join(map(str, row["image"]))

    def render(found: Records, _: list[Plot]) -> str:
        parts = []
        for machine, rows in _machines(found, kind).items():
            # a reduced form shows that a command works, and is nobody's result
            whole = [row for row in rows if not row["method"].startswith("reduced")]
            shown = {title: numbers(field) for field, title in columns.items()}
            lines = lines_of(whole, {**fields(*names), **shown, "peak MB": numbers("peak_mb"), "image": image})
            parts += [f"**{machine}**", markdown(lines, len(names)), _from(whole)] if whole else []
        return _joined(parts)

    return render


def _by_machine(kind: str, table: Callable[[list[Row]], list[Line]], left: int) -> Block:
    """A renderer of a table for each machine; what failed is named below it."""

    def render(found: Records, _: list[Plot]) -> str:
        parts = []
        for machine, rows in _machines(found, kind).items():
            whole = [row for row in rows if not row.get("failure")]
            parts += [f"**{machine}**", *([markdown(table(whole), left)] if whole else []), *_failures(rows)]
            parts.append(_from(rows))
        return _joined(parts)

    return render


def _failures(rows: Iterable[Row], before: str = "") -> list[str]:
    """A sentence for each row that failed."""
    failed = [row for row in rows if row.get("failure")]
    return [f"{before}{', '.join(map(str, records.key(row)[1:]))}: {row['failure']}." for row in failed]


def _cpu(found: Records, _: list[Plot]) -> str:
    parts = []
    for machine, rows in _timed_on_cpus(found).items():
        for function in dict.fromkeys(row["function"] for row in rows):
            mine = [row for row in rows if row["function"] == function and row["case"] in cases.ON_A_CPU]
            if not mine:
                continue
            parts += [f"**{machine}, `{function}`**", markdown(cpu_tables.speed_table(mine), 3), _from(mine)]
            parts += ["How many times as long as `cpu` each takes:", markdown(cpu_tables.others_table(mine), 4)]
    return _joined(parts)


def _of_main(table: Callable[[list[Row]], list[Line]], left: int) -> Block:
    """A renderer of the main function's rows, a table for each machine."""

    def render(found: Records, _: list[Plot]) -> str:
        parts = []
        for machine, rows in _timed_on_cpus(found).items():
            lines = table([row for row in rows if row["function"] == cpu_tables.MAIN])
            parts += [f"**{machine}**", markdown(lines, left), _from(rows)] if len(lines) > 1 else []
        return _joined(parts)

    return render


def _timed_on_cpus(found: Records) -> dict[str, list[Row]]:
    """Rows of machines on which ours was timed."""
    machines = _machines(found, "cpu").items()
    return {
        machine: rows
        for machine, rows in machines
        if any(row["backend"] == cpu_tables.OURS and row["median_us"] is not None for row in rows)
    }


def _trained(found: Records, plotted: list[Plot], *, with_table: bool) -> str:
    """Of every experiment whether its backends agree, and its curves."""
    parts = []
    for machine, rows in _machines(found, "seeds").items():
        # a reduced form shows that a command works, and is nobody's result
        whole = [row for row in rows if not row["reduced"]]
        for mine in spread.experiments([row for row in whole if row["failure"] is None]):
            what = f"{machine}, {mine[0]['model']}, {mine[0]['settings']}"
            parts += [f"**{what}**", markdown(spread.table(mine), 1)] if with_table else [f"**{what}.**"]
            digest, draw = spread.drawn_digest(mine), partial(spread.curves, mine)
            image = _plot(plotted, f"seeds {what}", digest, draw, f"loss and AP by backend, {what}")
            parts += [f"{spread.verdict(mine)} {_from(mine)}", image]
        parts += _failures(whole, f"{machine}, ") if with_table else []
    return _joined(parts)


BLOCKS: dict[str, Block] = {
    "operator": _operator,
    "coverage": _coverage,
    "bounds": _bounds,
    "instructions": _instructions,
    "before-and-after": _before_and_after,
    "predicted": _predicted,
    "models": _models,
    "model-speeds": _speeds("model", fps="images/s"),
    "training": _speeds("training", images_per_second="images/s", hours_per_epoch="hours/epoch"),
    "loading": _by_machine("loading", training.loading_table, 2),
    "seeds": partial(_trained, with_table=True),
    "curves": partial(_trained, with_table=False),
    "loading-memory": _by_machine("loading-memory", training.memory_table, 0),
    "training-steps": _by_machine("training-step", training.step_table, len(records.KEYS["training-step"])),
    "explanations": _by_machine("explanation", explain.explanation_table, 3),
    "startup": _by_machine("startup", cpu_tables.startup_table, 1),
    "cpu": _cpu,
    "cpu-short": _of_main(cpu_tables.short_table, 2),
    "cpu-areas": _of_main(cpu_tables.area_table, 1),
    "first-call": _by_machine("first-call", cpu_tables.first_call_table, 4),
    "exports": _by_machine("export", exports.export_table, 1),
}
