"""``msdeform data convert``."""

from ..data.dataset import CocoDetection, data_line
from ..data.layouts import FORMATS
from ..data.preparation.convert import convert
from ..data.preparation.options import ConvertDataOptions
from ..data.preparation.read import PartName, parts_of, read_part


def run(options: ConvertDataOptions) -> int:
    """Converts, and says what was read, what was left out and what was written."""
    if options.out.is_dir() and any(options.out.iterdir()):
        raise ValueError(f"out: expected an absent or an empty folder, got {options.out}, which holds files")
    parts: dict[PartName, CocoDetection] = {}
    for part in parts_of(options):
        parts[part] = read_part(options, part, options.bad_data, next(iter(parts.values()), None))
    print(data_line(options.data, parts.get("train"), parts.get("val"), parts.get("all")))
    for data in parts.values():
        for line in (
            *data.annotations.dropped.warnings,
            *data.annotations.dropped.wrong,
            *data.annotations.dropped.images,
        ):
            print(f"left out: {line}")
    done = convert(parts, options.to, options.out, options.images, progress=options.progress)
    for line in done.sentences():
        print(line)
    crowds = f", {done.crowds:,} of them crowds or difficult" if done.crowds else ""
    print(f"wrote {FORMATS[options.to]} with {done.images:,} images and {done.boxes:,} boxes{crowds}: {options.out}")
    return 0
