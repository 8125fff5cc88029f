"""``msdeform data check``."""

from collections import Counter
from itertools import groupby
from pathlib import Path

from ...common.files import write_json
from ...common.text import counted
from ..data.annotations import LISTED
from ..data.dataset import data_line
from ..data.preparation.check import KINDS, check
from ..data.preparation.options import CheckOptions
from ..visual.boxes import save_picture
from ..visual.findings import draw_findings


def run(options: CheckOptions) -> int:
    """Prints the findings by kind, the first few of each, and writes the picture and the JSON file."""
    parts, findings = check(options)
    line = None
    if parts:
        line = data_line(options.data, parts.get("train"), parts.get("val"), parts.get("all"))
        print(line)
    for kind, group in groupby(findings, lambda finding: finding.kind):
        mine = list(group)
        print(f"\n{KINDS[kind]}: {len(mine):,}")
        for finding in mine[:LISTED]:
            print(f"  {finding.line()}")
        if len(mine) > LISTED:
            print(f"  and {len(mine) - LISTED:,} more")
    print(f"\n{counted(len(findings), 'finding')}" if findings else "\nnothing suspicious was found")
    if options.json is not None:
        counts = Counter(finding.kind for finding in findings)
        content = {
            "data": str(options.data),
            "recognised": line,
            "counts": {kind: counts[kind] for kind in KINDS if counts[kind]},
            "kinds": KINDS,
            "findings": [finding.as_json() for finding in findings],
        }
        write_json(options.json, content)
        print(f"all of them: {options.json}")
    sheet = draw_findings(parts, findings)
    if sheet is not None:
        out = options.out or Path("runs", "data", options.data.resolve().stem, "check.png")
        save_picture(sheet, out)
        print(f"pictures:    {out}")
    return 1 if options.strict and findings else 0
