"""What a compiler and an assembler made of a kernel: how long its listings are, its registers, and what it spills."""

import re
import subprocess
import tempfile
from pathlib import Path

_PTX = re.compile(r"^\s*(?:\{\s*)?(?:@!?%\w+\s+)?(?!\.)[a-z][a-z0-9_.:]*(?:\s[^;]*)?;", re.MULTILINE)
SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?!NOP\b)([A-Z][A-Za-z0-9_.]*)")
"""a machine instruction that is not idle; the group is its opcode"""


def listing(ptx: str, name: str, cubin: bytes | None = None) -> dict[str, int]:
    """Of the kernel called `name`: instructions in ``ptx``; machine instructions, ``sass``, without the idle ones that
    pad the end; ``registers`` and ``spilled_bytes`` of local memory of a thread.

    The PTX is assembled for its own target by Triton's assembler where no machine code is given.
    """
    body = re.search(rf"\.entry\s+{re.escape(name)}\b.*?\n\}}", ptx, re.DOTALL)
    if body is None:
        raise ValueError(f"kernel {name}: not in this PTX")
    usage, code = disassembled(_assembled(ptx) if cubin is None else cubin)
    of = re.search(rf"Function {re.escape(name)}:\s*\n(.*)", usage)
    numbers = {key: int(count) for key, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", of[1] if of else "")}
    sections = re.split(r"//-+ \.text\.(\S+)", code)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))[name]
    return {
        "ptx": len(_PTX.findall(body[0])),
        "sass": len(SASS.findall(text)),
        "registers": numbers["REG"],
        "spilled_bytes": numbers["STACK"] + numbers["LOCAL"],
    }


def disassembled(cubin: bytes) -> tuple[str, str]:
    """What the disassemblers print of machine code: its use of registers and memory, and its instructions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return _tool("cuobjdump", "-res-usage", str(path)), _tool("nvdisasm", "-c", str(path))


def _assembled(ptx: str) -> bytes:
    target = re.search(r"\.target\s+(\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source, machine = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        _tool("ptxas", f"--gpu-name={target[1]}", str(source), "-o", str(machine))
        return machine.read_bytes()


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools in Triton's wheel prints."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout
