"""``msdeform bench cache``: how many of the forward's reads of value the first cache answers, by the order of queries.

    hits       of the rows read, those that L1 holds; and with half of it, as its size is known only roughly
    idle       lanes without a query, in tiles that a level's edge cuts
    wave MB    what all programs that run at once touch
    L1         all rows read / rate of the first cache
    L2         what L1 misses / rate of the second one
    at least   the longer of the two, as they overlap

Simulated as :mod:`.multiprocessor` says, with the rates of :mod:`.model`, to be held against a GPU. Guesses: the rate
of L2, the size and replacement of L1, and that all programs take equally long. The issue of instructions, which
``msdeform bench model`` predicts, is in none of it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..kernels.arguments import Parser
from .cases import CASES, LOCATIONS, find, nearest
from .looks import Look, drawn, trained
from .model import CASE, H200
from .multiprocessor import DEALT, Launch, Machine, count, fits, wave_bytes
from .orders import ORDERS
from .provenance import provenance
from .records import RESULTS, Row, append
from .runner import public
from .tables import Line, aligned, number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MOST_KB = 256  # of L1 and shared memory together


def main(argv: list[str] | None = None) -> int:
    """Simulates, prints, and on request records."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    machine = Machine(options.l1_kb, options.resident, options.sample, options.dealt)
    rows = list(_rows(options, machine))
    print(f"{described(rows)}\n")
    print(aligned(table(rows), 4))
    if options.out is not None:
        # whose folder a file lies in is no part of a result
        told = [Path(word).name if "/" in word else word for word in public(arguments)]
        source = provenance(torch.device("cpu"), ["msdeform", "bench", "cache", *told])
        append(options.out / "cache.jsonl", [{**row, **source} for row in rows])
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    usual = Machine()
    parser = Parser(prog="msdeform bench cache", description=__doc__.split("\n\n")[0])
    parser.add_argument("--case", default=CASE, help=f"an encoder's (default: {CASE})")
    parser.add_argument("--locations", nargs="+", default=list(LOCATIONS), metavar="NAME", help=", ".join(LOCATIONS))
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), metavar="NAME", help=", ".join(ORDERS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), metavar="NAME", help=", ".join(DTYPES))
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN_OR_FILE", help="of a detector whose encoder is followed"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="that the detector sees (default: synthetic scenes)")
    parser.add_argument("--l1-kb", type=int, default=usual.kb, help=f"usable as L1 (default: {usual.kb})")
    parser.add_argument("--resident", type=int, default=usual.resident, help="programs at once on a multiprocessor")
    parser.add_argument("--sample", type=int, default=usual.sample, help="multiprocessors simulated (default: 2)")
    parser.add_argument(
        "--dealt",
        default=usual.dealt,
        metavar="HOW",
        help="programs to multiprocessors, turn or random (default: turn)",
    )
    parser.add_argument("--no-progress", action="store_true", help="without a bar on stderr")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="append the rows there (bench/results)"
    )
    options = parser.parse_args(arguments)
    for option, kind, names, known in (
        ("case", "case", [options.case], CASES),
        ("locations", "place", options.locations, LOCATIONS),
        ("orders", "order", options.orders, ORDERS),
        ("dealt", "way to deal", [options.dealt], DEALT),
        ("dtypes", "dtype", options.dtypes, DTYPES),
    ):
        for name in names:
            if name not in known:
                parser.error(f"--{option}: {nearest(kind, name, list(known))}")
    case = find(options.case)
    if case.Q is not None:
        parser.error(f"--case: expected an encoder's, whose queries are the pixels, got {case.name}")
    if not all(fits(case.D, DTYPES[dtype].itemsize) for dtype in options.dtypes):
        parser.error(f"--case: expected heads that take 32, 64 or 128 bytes, got {case.name} of {case.D} channels")
    for option, value, most in (
        ("l1-kb", options.l1_kb, _MOST_KB),
        ("resident", options.resident, 32),
        ("sample", options.sample, H200.multiprocessors),
    ):
        if not 1 <= value <= most:
            parser.error(f"--{option}: expected 1 to {most}, got {value}")
    if options.image is not None and options.checkpoint is None:
        parser.error("--image: expected --checkpoint beside it, to say which detector sees it")
    return options


def _rows(options: argparse.Namespace, machine: Machine) -> Iterator[Row]:
    from ..train.commandline import progress_bar

    followed = [] if options.checkpoint is None else trained(options.checkpoint, options.image)
    if not all(fits(look.D, DTYPES[dtype].itemsize) for look in followed for dtype in options.dtypes):
        raise ValueError(f"checkpoint: expected heads that take 32, 64 or 128 bytes, got {followed[0].D} channels")
    total = (len(options.locations) + bool(followed)) * len(options.dtypes) * len(options.orders)
    with progress_bar("simulating", total, shown=not options.no_progress) as advance:
        for place in (*options.locations, "trained"):
            # drawn when its turn comes: a case's inputs are a few hundred megabytes
            looks = followed if place == "trained" else [drawn(find(options.case, place))]
            for dtype in options.dtypes if looks else ():
                for name in options.orders:
                    yield simulated(looks, dtype, name, machine)
                    advance()


def simulated(looks: Sequence[Look], dtype: str, order: str, machine: Machine) -> Row:
    """A row for the calls of all layers together; times and bytes are of them together, too."""
    itemsize = DTYPES[dtype].itemsize
    launches = [Launch(look, ORDERS[order], itemsize) for look in looks]
    counted = [count(launch, machine) for launch in launches]
    reads, hits, hits_half = (sum(numbers) for numbers in zip(*counted, strict=True))
    if reads == 0:
        raise ValueError(f"sample: expected more than {machine.sample}, as these multiprocessors got no program at all")
    bytes_read = sum(4 * look.points[..., 0].size * look.D * itemsize for look in looks)
    missed = bytes_read * (1 - hits / reads)
    lanes = sum(launch.blocks.size for launch in launches)
    return {
        "kind": "cache",
        "case": looks[0].case,
        "locations": looks[0].locations,
        "dtype": dtype,
        "order": order,
        "layers": len(looks),
        "shape": {"B": looks[0].points.shape[0], "H": looks[0].points.shape[2], "sizes": looks[0].sizes},
        "block_q": launches[0].blocks.shape[1],
        "idle": 1 - sum(sum(h * w for h, w in look.sizes) for look in looks) / lanes,
        "l1_kb": machine.kb,
        "resident": machine.resident,
        "sample": machine.sample,
        "dealt": machine.dealt,
        "multiprocessors": machine.gpu.multiprocessors,
        "reads": reads,
        "hit_rate": hits / reads,
        "hit_rate_half": hits_half / reads,
        "wave_bytes": max(wave_bytes(launch, machine) for launch in launches),
        "l2_bytes": missed,
        "l1_us": 1e6 * bytes_read / machine.gpu.l1,
        "l2_us": 1e6 * missed / machine.gpu.l2,
    }


def described(rows: Sequence[Row]) -> str:
    """What was simulated, in a line."""
    sample, machines, kb, resident, dealt = (
        " or ".join(dict.fromkeys(str(row[name]) for row in rows))
        for name in ("sample", "multiprocessors", "l1_kb", "resident", "dealt")
    )
    programs = f"{resident} programs at once on each, dealt {DEALT.get(dealt, dealt)}"
    return (
        f"{sample} of {machines} multiprocessors of an {H200.name}, {programs}, {kb} KB of L1; microseconds, predicted"
    )


def table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for each row."""
    head = ("case", "locations", "dtype", "order", "hits", "with half", "idle", "wave MB", "L2 MB", "L1", "L2")
    lines: list[Line] = [(*head, "at least")]
    for row in rows:
        lines.append(
            (
                *(row[name] for name in head[:4]),
                *(f"{row[name]:.1%}" for name in ("hit_rate", "hit_rate_half", "idle")),
                *(number(row[name], 1e6) for name in ("wave_bytes", "l2_bytes")),
                *(number(row[name]) for name in ("l1_us", "l2_us")),
                number(max(row["l1_us"], row["l2_us"])),
            )
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
