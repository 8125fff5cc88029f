"""``msdeform verify``: every backend that runs here checked, forward and each gradient, against the truth."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...common.device import choose_device
from .. import registry
from .checks import DTYPES, Case, check_case, default_cases, usual_case
from .options import VerifyOptions, parse_levels


def run(cases: Sequence[Case], backends: Sequence[str], device: torch.device | str) -> bool:
    """Print the table of errors beside their bounds; returns whether every one holds."""
    ok = True
    for case in cases:
        print(f"\n{case.describe()}; value {_name(case.dtype)}")
        print(f"  {'backend':<10} {'quantity':<24} {'error':>10} {'bound':>10} {'error/bound':>12}")
        for backend, quantity, comparison in check_case(case, backends, device):
            ratio = comparison.error / comparison.bound if comparison.bound else math.nan
            mark = "" if comparison.ok else "   BREACH"
            error, bound = comparison
            print(f"  {backend:<10} {quantity:<24} {error:>10.2e} {bound:>10.2e} {ratio:>12.3f}{mark}")
            ok = ok and comparison.ok
    return ok


def verify(options: VerifyOptions) -> int:
    """``msdeform verify``; returns 0 if every error is within its bound, 1 if one is not."""
    device = choose_device(options.device)
    backends = []
    for verdict in registry.report(registry.example_inputs(device)):
        if options.backend and verdict.name not in options.backend:
            continue
        if verdict.reason is None:
            backends.append(verdict.name)
        elif options.backend:
            raise registry.BackendUnavailable(f"backend {verdict.name!r} cannot run here: {verdict.reason}")
        else:
            print(f"{verdict.name}: not checked: {verdict.reason}")
    ok = run(_chosen_cases(options, device.type), backends, device)
    print(
        f"\n{'every error is within its bound' if ok else 'BREACH: an error exceeds its bound'}: {', '.join(backends)}"
    )
    return 0 if ok else 1


def _chosen_cases(options: VerifyOptions, device_type: str) -> list[Case]:
    shape = {
        "B": options.batch,
        "Q": options.queries,
        "H": options.heads,
        "D": options.channels,
        "P": options.points,
        "sizes": None if options.levels is None else parse_levels(options.levels),
    }
    given: dict[str, Any] = {name: value for name, value in shape.items() if value is not None}
    if given:
        base = usual_case(device_type)
        cases = [replace(base, coordinates=c, dtype=d, **given) for c in (None, 2, 4) for d in DTYPES.values()]
    else:
        cases = default_cases(device_type)
    cases = [replace(case, seed=options.seed) for case in cases]
    return [case for case in cases if options.dtype is None or case.dtype is DTYPES[options.dtype]]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
