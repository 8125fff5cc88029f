"""``msdeform bench dispatch``: what a call costs the host, in stages; :mod:`.host_time` says which."""

from ..harness.provenance import command_line, provenance, usual_device
from ..harness.records import append
from ..harness.tables import aligned
from ..options import DispatchOptions
from .host_time import CASE, measure, table


def run(options: DispatchOptions) -> int:
    """``msdeform bench dispatch``: measures, prints, and on request records."""
    device = usual_device()
    rows = measure(device, options.rounds, options.calls)
    print(f"{CASE}, float32, {device.type}: microseconds of the host for a call, launches that do nothing\n")
    print(aligned(table(rows), 3))
    if options.out is not None:
        source = provenance(device, command_line("msdeform bench dispatch", options))
        append(options.out / "dispatch.jsonl", [{**row, **source} for row in rows])
    return 0
