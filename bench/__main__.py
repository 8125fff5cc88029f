"""``python -m msdeform.bench`` is ``msdeform bench``."""

import sys

from .operators import main

sys.exit(main())
