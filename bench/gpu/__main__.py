"""``python -m msdeform.bench.gpu``, which `make gpu` runs."""

import sys

from .run import main

sys.exit(main(sys.argv[1:]))
