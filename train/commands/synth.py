"""``msdeform data synth``."""

from ..data.synthetic.options import SynthOptions
from ..data.synthetic.synth import make_dataset


def run(options: SynthOptions) -> int:
    """Writes the data set, and says so."""
    make_dataset(options)
    print(f"wrote {options.train} + {options.val} images of {options.classes} classes to {options.out}")
    return 0
