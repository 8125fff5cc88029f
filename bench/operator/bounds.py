"""What a measured time could have been: bytes that have to move, and instructions that have to be issued.

    traffic floor = compulsory bytes / measured copy bandwidth
    issue floor   = warp instructions / (multiprocessors * 4 schedulers * clock)

Compulsory bytes are those of every input read once and every result written once; of value no more than the four
corners of each sample. The instructions are those that ``msdeform bench instructions`` recorded, of our backends with
the heads, levels and points of Deformable DETR only. Neither floor is reached; the higher of the two says what bounds a
kernel that comes near it.
"""

import torch

from ..harness import records
from ..harness.records import Records, Row
from ..static import counts
from .cases import Case
from .inputs import OperatorInputs

SCHEDULERS = 4  # of a multiprocessor, since Volta; each issues a warp instruction a cycle


def compulsory_bytes(case: Case, inputs: OperatorInputs, *, fused: bool, direction: str) -> int:
    """Bytes that a forward, a backward or both have to read and write, of one call on these inputs."""
    if direction == "both":
        return sum(compulsory_bytes(case, inputs, fused=fused, direction=one) for one in ("forward", "backward"))
    (value, *small), output = inputs.of(fused), inputs.grad_output
    corners = 4 * case.points * case.D * value.element_size()
    read = min(value.nbytes, corners) + sum(tensor.nbytes for tensor in small)
    if direction == "forward":
        return read + output.nbytes
    # value's gradient is written whole: zero where nothing sampled
    return read + output.nbytes + value.nbytes + sum(tensor.nbytes for tensor in small)


def floors(
    microseconds: float,
    moved: int,
    copy_bytes_per_second: float,
    warp_instructions: float | None,
    issue_rate: float,
) -> Row:
    """A time held against both floors.

    Args:
        microseconds: of one call.
        moved: compulsory bytes of the call.
        copy_bytes_per_second: of a plain copy on the device.
        warp_instructions: of the whole call, or None where they are not known.
        issue_rate: warp instructions a second of the whole device.
    """
    traffic = moved / copy_bytes_per_second * 1e6
    issue = None if warp_instructions is None else warp_instructions / issue_rate * 1e6
    return {
        "bytes": moved,
        "bytes_per_second": moved / microseconds * 1e6,
        "copy_bytes_per_second": copy_bytes_per_second,
        "of_copy_bandwidth": traffic / microseconds,
        "traffic_floor_us": traffic,
        "issue_floor_us": issue,
        "of_issue_floor": None if issue is None else issue / microseconds,
        "bound_by": None if issue is None else "traffic" if traffic > issue else "instruction issue",
    }


def of_row(row: Row, case: Case, inputs: OperatorInputs, fused: bool, copy: float, device: torch.device) -> Row:
    """The fields of a row measured on a GPU; without a count of instructions there is no issue floor."""
    properties = torch.cuda.get_device_properties(device)
    arch = properties.major * 10 + properties.minor
    recorded = records.read(records.RESULTS) if records.RESULTS.is_dir() else Records()
    each = counts.issued_by(recorded, row["backend"], row["direction"], row["dtype"], fused, case, arch)
    rate = properties.multi_processor_count * SCHEDULERS * properties.clock_rate * 1e3  # clock_rate counts kHz
    warp_instructions = None if each is None else each * case.B * case.queries * case.H
    moved = compulsory_bytes(case, inputs, fused=fused, direction=row["direction"])
    found = floors(row["median_us"], moved, copy, warp_instructions, rate)
    return {**found, "instructions_per_query_and_head": each}


FIELDS = (*floors(1.0, 1, 1.0, None, 1.0), "instructions_per_query_and_head")
"""the fields of :func:`of_row`"""
