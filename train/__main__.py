"""``python -m msdeform.train`` is ``msdeform train``."""

import sys

from ..cli import main

sys.exit(main(["train", *sys.argv[1:]]))
