"""OpenVINO's core, of which a process has one."""

from functools import cache
from typing import Any


@cache
def openvino_core() -> Any:
    """The process's one ``openvino.Core``, kept to its end.

    The CPU plug-in of each core gives the thread another stack for signals, and puts the one before it back when it
    ends. Of two that end in the order in which they began, the second puts back the first's, which is freed by then:
    the next signal that Python handles ends the process (OpenVINO 2025.4 to 2026.4).
    """
    import openvino

    return openvino.Core()
