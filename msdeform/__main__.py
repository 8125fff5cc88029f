"""``python -m msdeform`` is the ``msdeform`` command."""

import sys

from .cli import main

sys.exit(main())
