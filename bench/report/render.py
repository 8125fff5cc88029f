"""``msdeform bench render``: every table and plot of the documentation, drawn anew from the recorded rows.

A file of Markdown says where: between ``<!-- rendered NAME -->`` and ``<!-- end of NAME -->`` stands what
:data:`BLOCKS` makes of the rows, and nothing that a hand wrote. ``--check`` changes nothing, and names what is not up
to date.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...common.files import atomic_file
from ...common.text import nearest
from ...explain.options import MEASURE_GROUPS
from ..cpu import tables as cpu_tables
from ..harness import records
from ..harness.records import Records, Row
from ..harness.tables import Line, fields, grouped, lines_of, markdown, numbers
from ..models import accelerated, deploy, exports
from ..models.explanations import cost, quality
from ..models.published import PUBLISHED
from ..models.training import benchmark as training
from ..models.training import recipes, spread
from ..operator import cases
from ..options import RenderOptions
from ..serving.tables import broken_table, serve_table, summary
from ..static import counts, model
from . import plots, tables

_BLOCK = re.compile(r"(<!-- rendered ([\w-]+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
_NONE = "No such row is recorded yet."


@dataclass(frozen=True)
class Plot:
    """A plot that a page shows: its name, what its rows digest to, how to draw it, and what it shows, in words."""

    name: str
    digest: str
    draw: Callable[[], object]
    shows: str

    @property
    def path(self) -> str:
        """Its file, beside the pages of docs/."""
        return f"plots/{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}.svg"

    def __str__(self) -> str:
        return f"![{self.shows}]({self.path})"

    def __call__(self) -> bytes:
        return plots.svg(self.draw(), self.digest)


Content = Callable[[], bytes]
Block = Callable[[Records], Iterable[str | Plot]]
"""paragraphs, tables and plots of a block, of the rows"""


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


def rendered(root: Path, found: Records) -> dict[Path, Content]:
    """What each file of the documentation, and each plot that it shows, has to hold."""
    files: dict[Path, Content] = {}

    def fill(block: re.Match[str]) -> str:
        if block[2] not in BLOCKS:
            raise ValueError(nearest("rendered block", block[2], list(BLOCKS)))
        parts = [*BLOCKS[block[2]](found)]
        files.update({root / "docs" / part.path: part for part in parts if isinstance(part, Plot)})
        text = "\n\n".join(map(str, parts)) or _NONE
        return f"{block[1]}{text.strip()}\n{block[4]}"

    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        filled = _BLOCK.sub(fill, path.read_text())
        if path.parent == root:  # plots have one place, whichever page shows them
            filled = filled.replace("](plots/", "](docs/plots/")
        files[path] = filled.encode
    return files


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

    commits = dict.fromkeys(f"{str(row.get('commit'))[:7]}{' and changes' if row.get('dirty') else ''}" for row in rows)
    loads = [row["host_load"] for row in rows if row.get("host_load") is not None]
    load = f"; {min(loads)} to {max(loads)} threads wanted to run" if loads else ""
    dates = sorted({str(row["date"])[:10] for row in rows})
    threads = f"{every('host_threads')} threads" if every("device") == "cpu" else every("device")
    return (
        f"{how} {' to '.join(dict.fromkeys((dates[0], dates[-1])))} at commit {', '.join(commits)}; {threads}; "
        f"torch {every('torch')}, Triton {every('triton')}{load}."
    )


def _operator(found: Records) -> Iterator[str | Plot]:
    for machine, rows in _machines(found, "operator").items():
        composed = {row["backend"]: row["composed"] for row in rows if row["composed"]}
        notes = [f"`{name}`*: {what} in PyTorch are part of its time." for name, what in composed.items()]
        yield from (f"**{machine}**", markdown(tables.speeds(rows), 5))
        yield " ".join([*notes, *tables.fastest(rows), _from(rows)])
        shown = plots.speedups(rows)
        for baseline in dict.fromkeys(row["baseline"] for row in shown):
            mine = [row for row in shown if row["baseline"] == baseline]
            draw, shows = partial(plots.speedup, mine, baseline), f"times faster than {baseline}, {machine}"
            yield Plot(f"speed {machine} {baseline}", plots.digest(mine, plots.SPEEDUP), draw, shows)


def _coverage(found: Records) -> Iterator[str]:
    missing = _machines(found, "missing")
    for machine, rows in _machines(found, "operator").items():
        lines = tables.coverage(rows, missing.get(machine, []))
        yield from (f"**{machine}**", markdown(lines, len(lines[0])))


def _bounds(found: Records) -> Iterator[str | Plot]:
    machines = {machine: plots.roofs(rows) for machine, rows in _machines(found, "operator").items()}
    for machine, rows in machines.items():
        if rows:
            yield from (f"**{machine}**", markdown(tables.floors(rows), 6), _from(rows))
            draw, shows = partial(plots.roofline, rows), f"floors over measured times, {machine}"
            yield Plot(f"roofline {machine}", plots.digest(rows, plots.ROOFLINE), draw, shows)
    if not any(machines.values()):
        yield "No row of a GPU is recorded yet, and only those have floors."


def _instructions(found: Records) -> Iterator[str]:
    """Counts of every kernel, and how the PTX of our CUDA backend compares with the official kernel's."""
    of_cases = {case: counts.table(found, case) for case in (counts.ENCODER, counts.DECODER)}
    if not any(len(lines) > 1 for lines in of_cases.values()):
        return
    for case, lines in of_cases.items():
        if len(lines) > 1:
            yield from (f"**{case}**", markdown(lines, 3))
    compared = [
        f"{call}: {ours['warp_instructions'] / theirs['warp_instructions'] - 1:+.0%}"
        for call, ours, theirs in counts.pairs(found, "cuda", "official")
    ]
    against = f"PTX instructions of `cuda` against the official kernel: {'; '.join(compared)}."
    yield against if compared else "The official kernel's instructions were not counted."
    yield _from([row for run in counts.latest(found).values() for row in run], "Counted")


def _before_and_after(found: Records) -> Iterator[str]:
    lines = counts.before_and_after(found, counts.ENCODER)
    yield markdown(lines, 2) if len(lines) > 1 else "No count has changed since the first that were recorded."


def _predicted(found: Records) -> Iterator[str]:
    lines = model.table(found)
    if len(lines) > 1:
        yield markdown(lines, 3)


def _models(found: Records) -> Iterator[str]:
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
    yield markdown(lines, 1)
    if counted:
        yield f"Counted by `msdeform table --flops`, which prints the convention. {_from(counted.values())}"


def _run(row: Row) -> str:
    """A training run's AP, with links to its configuration, log and checkpoint."""
    ap = ", ".join(f"{row[name]:.1f}" for name in ("ap", "ap_s", "ap_m", "ap_l"))
    return f"{ap} ({', '.join(f'[{name}]({row[name]})' for name in ('config', 'log', 'checkpoint'))})"


def _failures(rows: Iterable[Row], before: str = "") -> list[str]:
    """A sentence for each row that failed."""
    failed = [row for row in rows if row.get("failure")]
    return [f"{before}{', '.join(map(str, records.key(row)[1:]))}: {row['failure']}." for row in failed]


def _whole(rows: list[Row]) -> list[Row]:
    """Those of detectors at full size: a reduced form shows that a command works, and is nobody's result."""
    return [row for row in rows if not row["method"].startswith("reduced")]


def _ours_timed(rows: list[Row]) -> list[Row]:
    """All of a machine on which our backend of a CPU was timed, or none."""
    ours = any(row["backend"] == cpu_tables.OURS and row["median_us"] is not None for row in rows)
    return rows if ours else []


def _main(rows: list[Row]) -> list[Row]:
    return [row for row in _ours_timed(rows) if row["function"] == cpu_tables.MAIN]


def _by_machine(
    kind: str,
    table: Callable[[list[Row]], list[Line]],
    left: int,
    chosen: Callable[[list[Row]], list[Row]] = list,
    *,
    failures: bool = True,
) -> Block:
    """A renderer of a table for each machine, of its chosen rows; `failures`: what failed is named below it instead."""

    def render(found: Records) -> Iterator[str]:
        for machine, every in _machines(found, kind).items():
            rows = chosen(every)
            lines = table([row for row in rows if not (failures and row.get("failure"))])
            failed = _failures(rows) if failures else []
            if len(lines) > 1 or failed:
                yield f"**{machine}**"
                yield from [markdown(lines, left)] if len(lines) > 1 else []
                yield from (*failed, _from(rows))

    return render


def _speeds(kind: str, **columns: str) -> Block:
    """A renderer of a line for each detector and way of running it: fields of a row by their titles."""
    names = records.KEYS[kind]

    def image(row: Row) -> str:
        return "failed" if row["failure"] is not None else "x".join(map(str, row["image"]))

    shown = {title: numbers(field) for field, title in columns.items()}
    every = {**fields(*names), **shown, "peak MB": numbers("peak_mb"), "image": image}
    return _by_machine(kind, lambda rows: lines_of(rows, every), len(names), _whole, failures=False)


def _cpu(found: Records) -> Iterator[str]:
    for machine, every in _machines(found, "cpu").items():
        rows = [row for row in _ours_timed(every) if row["case"] in cases.ON_A_CPU]
        for function in dict.fromkeys(row["function"] for row in rows):
            mine = [row for row in rows if row["function"] == function]
            yield from (f"**{machine}, `{function}`**", markdown(cpu_tables.speed_table(mine), 3), _from(mine))
            yield from ("How many times as long as `cpu` each takes:", markdown(cpu_tables.others_table(mine), 4))


def _trained(found: Records, *, with_table: bool) -> Iterator[str | Plot]:
    """Of every experiment whether its backends agree, and its curves."""
    for machine, rows in _machines(found, "seeds").items():
        # a reduced form shows that a command works, and is nobody's result
        whole = [row for row in rows if not row["reduced"]]
        for mine in spread.experiments([row for row in whole if row["failure"] is None]):
            what = f"{machine}, {mine[0]['model']}, {mine[0]['settings']}"
            yield from (f"**{what}**", markdown(spread.table(mine), 1)) if with_table else (f"**{what}.**",)
            yield f"{spread.verdict(mine)} {_from(mine)}"
            draw, shows = partial(spread.curves, mine), f"loss and AP by backend, {what}"
            yield Plot(f"seeds {what}", spread.drawn_digest(mine), draw, shows)
        yield from _failures(whole, f"{machine}, ") if with_table else []


def _recipe_curves(found: Records) -> Iterator[str | Plot]:
    """Curves of the runs on the same images."""
    for machine, rows in _machines(found, "recipe").items():
        ended = [row for row in rows if row["failure"] is None]
        for (data, validated), mine in grouped(ended, "data", "validated").items():
            what = f"{data}, validated on {validated}, {machine}"
            draw, shows = partial(recipes.curves, mine), f"loss and AP by recipe, {what}"
            yield Plot(f"recipes {what}", plots.digest(mine, recipes.DRAWN), draw, shows)


def _explained(group: str, found: Records) -> Iterator[str]:
    """Measures of one group, of every detector and method; on whichever machine."""
    rows = quality.of_group(found.of("explanation-quality"), group)
    for (detector, data, target), mine in grouped(rows, "detector", "data", "target").items():
        of_class = "" if target == "class" else f", {target} of the box explained"
        count = quality.counted_detections(mine)
        yield f"**{detector} on {data}{of_class}**: {count}"
        yield markdown(quality.quality_table(mine, group), 1)
    if rows:
        yield _from(rows)


def _broken(found: Records) -> Iterator[str]:
    for machine, rows in _machines(found, "serve-broken").items():
        for row in rows:
            what = f"{row['model']} in {row['engine']}, {row['requests']} requests, {row['broken']:.0%} of them broken"
            yield f"**{what}, {machine}**"
            yield markdown(broken_table(row), 2)
            yield "\n".join(f"- {line}" for line in summary(row).splitlines())
        yield _from(rows)


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
    "recipes": _by_machine("recipe", recipes.recipe_table, 4),
    "recipe-intervals": _by_machine("recipe", recipes.interval_table, 4),
    "recipe-curves": _recipe_curves,
    "loading-memory": _by_machine("loading-memory", training.memory_table, 0),
    "training-steps": _by_machine("training-step", training.step_table, len(records.KEYS["training-step"])),
    "explanations": _by_machine("explanation", cost.explanation_table, 3),
    **{f"explained-{group}": partial(_explained, group) for group in MEASURE_GROUPS},
    "accelerated": _by_machine("accelerated", accelerated.accelerated_table, 3),
    "startup": _by_machine("startup", cpu_tables.startup_table, 1),
    "cpu": _cpu,
    "cpu-short": _by_machine("cpu", cpu_tables.short_table, 2, _main, failures=False),
    "cpu-areas": _by_machine("cpu", cpu_tables.area_table, 1, _main, failures=False),
    "first-call": _by_machine("first-call", cpu_tables.first_call_table, 4),
    "exports": _by_machine("exported", exports.export_table, 1),
    "deployed": _by_machine("deployed", deploy.deploy_table, 1),
    "serving": _by_machine("serve", serve_table, 3),
    "serving-broken": _broken,
}
