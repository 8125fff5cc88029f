"""``python -m msdeform.bench``: the benchmark of :mod:`.gpu`, without its verify table and tests."""

import sys

from .gpu import main

sys.exit(main(["--no-verify", "--no-tests", *sys.argv[1:]]))
