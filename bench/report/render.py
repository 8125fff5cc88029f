"""``msdeform bench render``: every table and plot of the documentation, drawn anew from the recorded rows.

A file of Markdown says where: between ``<!-- rendered NAME -->`` and ``<!-- end of NAME -->`` stands what
:data:`BLOCKS` makes of the rows, and nothing that a hand wrote. ``--check`` changes nothing, and names what is not up
to date.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ...common.files import atomic_file
from ...common.options import nearest
from ..cpu import tables as cpu_tables
from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import Line, markdown, number
from ..models import explain, exports, spread, training
from ..models.published import PUBLISHED
from ..operator import cases
from ..options import RenderOptions
from ..static import counts, model
from . import coverage, plots, roofline

_BLOCK = re.compile(r"(<!-- rendered ([\w-]+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
_NONE = "No such row is recorded yet."


def run(options: RenderOptions) -> int:
    """``msdeform bench render``: writes, or with --check compares; returns 1 where something was not up to date."""
    found = records.read(*options.results)
    for sentence in found.broken:
        print(sentence, file=sys.stderr)
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


class Plot:
    """A plot that a page shows: its file, what its rows digest to, and how to draw it."""

    def __init__(self, path: str, digest: str, draw: Callable[[], object]) -> None:
        self.path, self.digest, self.draw = path, digest, draw

    def __call__(self) -> bytes:
        return plots.svg(self.draw(), self.digest)


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


def _operator(found: Records, plotted: list[Plot]) -> str:
    parts = []
    for machine, rows in _machines(found, "operator").items():
        parts += [f"**{machine}**", markdown(coverage.speeds(rows), 5)]
        composed = {row["backend"]: row["composed"] for row in rows if row["composed"]}
        notes = [f"`{name}`*: {what} in PyTorch are part of its time." for name, what in composed.items()]
        parts.append(" ".join([*notes, *coverage.fastest(rows), _from(rows)]))
        shown = plots.speedups(rows)
        for baseline in dict.fromkeys(row["baseline"] for row in shown):
            mine = [row for row in shown if row["baseline"] == baseline]
            name = re.sub(r"[^a-z0-9]+", "-", f"{machine} {baseline}".lower()).strip("-")
            plot = Plot(
                f"plots/speed-{name}.svg",
                plots.speedup_digest(mine),
                lambda mine=mine, baseline=baseline: plots.speedup(mine, baseline),  # type: ignore[misc]
            )
            plotted.append(plot)
            parts.append(f"![times faster than {baseline}, {machine}]({plot.path})")
    return "\n\n".join(parts) or _NONE


def _claims(found: Records, _: list[Plot]) -> str:
    missing = _machines(found, "missing")
    parts = []
    for machine, rows in _machines(found, "operator").items():
        lines = coverage.claims(rows, missing.get(machine, []))
        parts += [f"**{machine}**", markdown(lines, len(lines[0]))]
    return "\n\n".join(parts) or _NONE


def _bounds(found: Records, plotted: list[Plot]) -> str:
    parts = []
    for machine, rows in _machines(found, "operator").items():
        shown = plots.roofs(rows)
        if shown:
            name = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
            plot = Plot(
                f"plots/roofline-{name}.svg",
                plots.roofline_digest(shown),
                lambda shown=shown: plots.roofline(shown),  # type: ignore[misc]
            )
            plotted.append(plot)
            parts += [f"**{machine}**", markdown(list(roofline.lines(shown)), 6), _from(shown)]
            parts.append(f"![floors over measured times, {machine}]({plot.path})")
    return "\n\n".join(parts) or "No row of a GPU is recorded yet, and only those have floors."


def _instructions(found: Records, _: list[Plot]) -> str:
    rows = [row for run in counts.latest(found).values() for row in run]
    parts = []
    for case in (counts.ENCODER, counts.DECODER):
        lines = counts.table(found, case)
        if len(lines) > 1:
            parts += [f"**{case}**", markdown(lines, 3)]
    return "\n\n".join([*parts, *_against_official(found), _from(rows, "Counted")]) if parts else _NONE


def _before_and_after(found: Records, _: list[Plot]) -> str:
    lines = counts.before_and_after(found, counts.ENCODER)
    return markdown(lines, 2) if len(lines) > 1 else "No count has changed since the first that were recorded."


def _predicted(found: Records, _: list[Plot]) -> str:
    lines = model.table(found)
    return markdown(lines, 3) if len(lines) > 1 else _NONE


def _against_official(found: Records) -> list[str]:
    """How our CUDA backend's PTX compares with the official kernel's."""
    sentences = []
    for call, ours, theirs in counts.pairs(found, "cuda", "official"):
        more = ours["warp_instructions"] / theirs["warp_instructions"] - 1
        sentences.append(f"{call}: {more:+.0%}")
    if not sentences:
        return ["The official kernel's instructions were not counted."]
    return [f"PTX instructions of `cuda` against the official kernel: {'; '.join(sentences)}."]


def _models(found: Records, _: list[Plot]) -> str:
    counted = {row["model"]: row for row in found.of("flops")}
    trained = {(row["model"], row["epochs"]): row for row in found.of("trained")}
    head = ("", "epochs", "AP", "AP_S", "AP_M", "AP_L", "hours", "params M", "counted", "FLOPs G", "counted")
    lines: list[Line] = [(*head, "V100 FPS", "batch 4", "our AP, AP_S, AP_M, AP_L")]
    for row in PUBLISHED:
        count = counted.get(row.model)
        run = trained.get((row.model, row.epochs))
        lines.append(
            (
                f"{row.title} (`{row.model}`)",
                *map(str, (row.epochs, row.ap, row.ap_s, row.ap_m, row.ap_l, row.hours, row.parameters_m)),
                "not counted" if count is None else f"{count['parameters'] / 1e6:.2f}",
                str(row.flops_g),
                "not counted" if count is None else f"{count['multiply_adds'] / 1e9:.1f}",
                *map(str, (row.fps, row.fps_4)),
                "not trained" if run is None else _run(run),
            )
        )
    parts = [markdown(lines, 1)]
    if counted:
        parts.append(f"Counted by `msdeform table --flops`, which prints the convention. {_from(counted.values())}")
    return "\n\n".join(parts)


def _run(row: Row) -> str:
    """A training run's AP, with links to its configuration, log and checkpoint."""
    ap = ", ".join(f"{row[name]:.1f}" for name in ("ap", "ap_s", "ap_m", "ap_l"))
    return f"{ap} ({', '.join(f'[{name}]({row[name]})' for name in ('config', 'log', 'checkpoint'))})"


def _model_speeds(found: Records, _: list[Plot]) -> str:
    return _speeds(found, "model", ("fps", "images/s"))


def _training(found: Records, _: list[Plot]) -> str:
    return _speeds(found, "training", ("images_per_second", "images/s"), ("hours_per_epoch", "hours/epoch"))


def _speeds(found: Records, kind: str, *numbers: tuple[str, str]) -> str:
    """A line for each detector and way of running it, by machine."""
    names = [name for name in records.KEYS[kind] if name in ("model", "method", "backend", "dtype", "mode", "batch")]
    parts = []
    for machine, rows in _machines(found, kind).items():
        # a reduced form shows that a command works, and is nobody's result
        whole = [row for row in rows if not row["method"].startswith("reduced")]
        lines: list[Line] = [(*names, *(title for _, title in numbers), "peak MB", "image")]
        for row in whole:
            lead = [str(row[name]) for name in names]
            failed = row["failure"] is not None
            image = "failed" if failed else "x".join(map(str, row["image"]))
            lines.append((*lead, *(number(row[field]) for field, _ in numbers), number(row["peak_mb"]), image))
        if whole:
            parts += [f"**{machine}**", markdown(lines, len(names)), _from(whole)]
    return "\n\n".join(parts) or _NONE


def _loading(found: Records, _: list[Plot]) -> str:
    return _tables(found, "loading", training.loading_table, 2)


def _loading_memory(found: Records, _: list[Plot]) -> str:
    return _tables(found, "loading-memory", training.memory_table, 0)


def _training_steps(found: Records, _: list[Plot]) -> str:
    return _tables(found, "training-step", training.step_table, len(records.KEYS["training-step"]))


def _explanations(found: Records, _: list[Plot]) -> str:
    return _tables(found, "explanation", explain.explanation_table, 3)


def _exports(found: Records, _: list[Plot]) -> str:
    return _tables(found, "export", exports.export_table, 1)


def _startup(found: Records, _: list[Plot]) -> str:
    return _tables(found, "startup", cpu_tables.startup_table, 1)


def _cpu(found: Records, _: list[Plot]) -> str:
    parts = []
    for machine, rows in _timed_on_cpus(found).items():
        for function in dict.fromkeys(row["function"] for row in rows):
            mine = [row for row in rows if row["function"] == function and row["case"] in cases.ON_A_CPU]
            if not mine:
                continue
            parts += [f"**{machine}, `{function}`**", markdown(cpu_tables.speed_table(mine), 3), _from(mine)]
            parts += ["How many times as long as `cpu` each takes:", markdown(cpu_tables.others_table(mine), 4)]
    return "\n\n".join(parts) or _NONE


def _of_main(table: Callable[[list[Row]], list[Line]], left: int) -> Callable[[Records, list[Plot]], str]:
    """A renderer of the main function's rows, a table for each machine."""

    def render(found: Records, _: list[Plot]) -> str:
        parts = []
        for machine, rows in _timed_on_cpus(found).items():
            lines = table([row for row in rows if row["function"] == cpu_tables.MAIN])
            if len(lines) > 1:
                parts += [f"**{machine}**", markdown(lines, left), _from(rows)]
        return "\n\n".join(parts) or _NONE

    return render


def _timed_on_cpus(found: Records) -> dict[str, list[Row]]:
    """Rows of machines on which ours was timed."""
    machines = _machines(found, "cpu").items()
    return {
        machine: rows
        for machine, rows in machines
        if any(row["backend"] == cpu_tables.OURS and row["median_us"] is not None for row in rows)
    }


def _first_call(found: Records, _: list[Plot]) -> str:
    return _tables(found, "first-call", cpu_tables.first_call_table, 4)


def _seeds(found: Records, plotted: list[Plot]) -> str:
    return _trained(found, plotted, with_table=True)


def _curves(found: Records, plotted: list[Plot]) -> str:
    return _trained(found, plotted, with_table=False)


def _trained(found: Records, plotted: list[Plot], *, with_table: bool) -> str:
    """Of every experiment whether its backends agree, and its curves."""
    parts = []
    for machine, rows in _machines(found, "seeds").items():
        # a reduced form shows that a command works, and is nobody's result
        whole = [row for row in rows if not row["reduced"]]
        for mine in spread.experiments([row for row in whole if row["failure"] is None]):
            what = f"{machine}, {mine[0]['model']}, {mine[0]['settings']}"
            name = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
            plot = Plot(
                f"plots/seeds-{name}.svg",
                spread.drawn_digest(mine),
                lambda mine=mine: spread.curves(mine),  # type: ignore[misc]
            )
            plotted.append(plot)
            parts += [f"**{what}**", markdown(spread.table(mine), 1)] if with_table else [f"**{what}.**"]
            parts += [f"{spread.verdict(mine)} {_from(mine)}", f"![loss and AP by backend, {what}]({plot.path})"]
        if with_table:
            failed = [row for row in whole if row["failure"] is not None]
            parts += [f"{machine}, {', '.join(map(str, records.key(row)[1:]))}: {row['failure']}." for row in failed]
    return "\n\n".join(parts) or _NONE


def _tables(found: Records, kind: str, table: Callable[[list[Row]], list[Line]], left: int) -> str:
    """A table for each machine; what failed is named below it."""
    parts = []
    for machine, rows in _machines(found, kind).items():
        failed = [row for row in rows if row.get("failure")]
        whole = [row for row in rows if not row.get("failure")]
        parts.append(f"**{machine}**")
        if whole:
            parts.append(markdown(table(whole), left))
        parts += [f"{', '.join(map(str, records.key(row)[1:]))}: {row['failure']}." for row in failed]
        parts.append(_from(rows))
    return "\n\n".join(parts) or _NONE


BLOCKS: dict[str, Callable[[Records, list[Plot]], str]] = {
    "operator": _operator,
    "claims": _claims,
    "bounds": _bounds,
    "instructions": _instructions,
    "before-and-after": _before_and_after,
    "predicted": _predicted,
    "models": _models,
    "model-speeds": _model_speeds,
    "training": _training,
    "loading": _loading,
    "seeds": _seeds,
    "curves": _curves,
    "loading-memory": _loading_memory,
    "training-steps": _training_steps,
    "explanations": _explanations,
    "startup": _startup,
    "cpu": _cpu,
    "cpu-short": _of_main(cpu_tables.short_table, 2),
    "cpu-areas": _of_main(cpu_tables.area_table, 1),
    "first-call": _first_call,
    "exports": _exports,
}
