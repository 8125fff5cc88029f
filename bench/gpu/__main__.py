"""``python -m msdeform.bench.gpu``, which `make gpu` runs."""

import sys

from ..harness.isolate import watch_parent
from .run import main

if "--stage" in sys.argv:
    watch_parent(group=True)
sys.exit(main(sys.argv[1:]))
