"""Without Triton there is nothing to compile: only the machine's own tests are left then."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["test_driver.py", "test_triton.py"]
