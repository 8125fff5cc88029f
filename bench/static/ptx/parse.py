"""PTX text to a kernel: parameters, instructions, labels, registers and shared memory.

Only the form is read here; what an instruction does is in :mod:`.instructions.decode`.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

WIDTHS = {"pred": 0, "8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
"""bytes of a register or a parameter, by the digits of its type; 0 is a predicate"""

# a line's place in the source, a comment, a label, a brace, or a statement, which may have braces inside
_TOKEN = re.compile(
    r"\.loc\s[^\n]*?//\s*(?P<source>\S+?:\d+)[^\n]*|(?:\.loc|\.file|//)[^\n]*|(?P<label>[$\w]+):(?!:)|(?P<brace>[{}])"
    r"|(?P<statement>[^\s{}/][^;]*);"
)
_PREDICATE = re.compile(r"^@\s*(!?)([%\w$.]+)\s+")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{\[]+(?:\s*[|+]\s*[^,\s]+)?")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)[^,()]*?(\w+_param_\d+)(?:\[(\d+)\])?")
_REGISTERS = re.compile(r"^\.reg\s*\.(\w+)\s+(.+)$")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.[busf](\d+)\s+([$\w]+)(\[(\d*)\])?")


class Fault(Exception):
    """What is wrong with a kernel, in one sentence: kernel, program, instruction, and what happened."""


@dataclass(frozen=True)
class Instruction:
    """One instruction; `operands` are its tokens, a vector or an address with its brackets."""

    text: str
    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    source: str
    """where in the Python or CUDA source it comes from, as file:line, or nothing"""


@dataclass
class Kernel:
    """A parsed kernel."""

    name: str
    ptx: str = field(repr=False)
    """the text that it was read from"""
    parameters: dict[str, tuple[str, int]] = field(default_factory=dict)
    """type and bytes, by name, in order"""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    """where in a program's shared memory a symbol is"""
    shared_bytes: int = 0
    """of shared memory with a size in the text; what the launch adds comes behind"""
    registers: list[int] = field(default_factory=list)
    """bytes of each register, by the number that `numbers` gives it"""
    numbers: dict[str, int] = field(default_factory=dict)
    _families: dict[str, int] = field(default_factory=dict)

    def register(self, name: str) -> int | None:
        """A register's number, or None if no register has that name."""
        family = name.rstrip("0123456789")
        if name not in self.numbers and family != name and family in self._families:
            self._add(name, self._families[family])
        return self.numbers.get(name)

    def _add(self, name: str, width: int) -> None:
        self.numbers[name] = len(self.registers)
        self.registers.append(width)

    @cached_property
    def read_registers(self) -> set[str]:
        """The names of all registers that some instruction reads."""
        tokens = []
        for instruction in self.instructions:
            first, *rest = (*instruction.operands, "")
            tokens += [*rest, instruction.predicate or "", first if first.startswith("[") else ""]
        return set(re.findall(r"[%\w$.]+", " ".join(tokens)))

    @cached_property
    def set_registers(self) -> set[str]:
        """The names of all registers that some instruction sets."""
        return set(re.findall(r"[%\w$.]+", " ".join(i.operands[0] for i in self.instructions if i.operands)))

    def declare(self, declaration: str, suffix: str = "") -> list[str]:
        """Take in a ``.reg`` or ``.shared``; returns the names of single registers, which get a suffix."""
        if match := _REGISTERS.match(declaration):
            kind, names = match.groups()
            width, single = WIDTHS[kind.lstrip("busf") if kind != "pred" else kind], []
            for name in names.replace(" ", "").split(","):
                family, _, count = name.partition("<")
                if count:
                    self._families[family] = width
                else:
                    self._add(family + suffix, width)
                    single.append(family)
            return single
        if match := _SHARED.search(declaration):
            align, bits, name, array, count = match.groups()
            if array and not count:  # its size comes with the launch
                self.shared[name] = -1
            else:
                self.shared[name] = -(-self.shared_bytes // int(align or 1)) * int(align or 1)
                self.shared_bytes = self.shared[name] + int(bits) // 8 * int(count or 1)
        elif declaration.startswith(".reg") or ".shared" in declaration:
            raise Fault(f"{self.name}: cannot read the declaration {declaration!r}")
        return []


@lru_cache(maxsize=512)
def parse(ptx: str, name: str | None = None) -> Kernel:
    """The kernel of this name, or the only one.

    Raises:
        Fault: the text has no such kernel, or a line that cannot be read.
    """
    entry = re.search(r"\.entry\s+(" + (re.escape(name) if name else r"[$\w]+") + r")\s*\(", ptx)
    if entry is None:
        raise Fault(f"the PTX has no kernel {name or ''}".rstrip())
    kernel = Kernel(entry[1], ptx)
    begin = ptx.index("{", ptx.index(")", entry.end()))
    for kind, parameter, count in _PARAMETER.findall(ptx, entry.end(), begin):
        kernel.parameters[parameter] = (kind, WIDTHS[kind.lstrip("busf")] * int(count or 1))
    for line in ptx[: entry.start()].splitlines():
        if ".shared" in line:
            kernel.declare(line)
    _read_body(kernel, ptx, begin)
    # a launch's own shared memory lies behind what has a size
    behind = -(-kernel.shared_bytes // 16) * 16
    kernel.shared = {symbol: behind if at < 0 else at for symbol, at in kernel.shared.items()}
    return kernel


def _read_body(kernel: Kernel, ptx: str, begin: int) -> None:
    depth, source = 0, ""
    local: dict[str, str] = {}  # names that a block declares for itself, and what they are called here
    for token in _TOKEN.finditer(ptx, begin):
        source = token["source"] or source
        if token["label"]:
            kernel.labels[token["label"]] = len(kernel.instructions)
        elif token["brace"]:
            depth += 1 if token["brace"] == "{" else -1
            if depth == 0:
                return
            if depth == 1:
                local.clear()
        elif token["statement"]:
            statement = " ".join(token["statement"].split())
            if statement.startswith("."):
                suffix = f".{len(kernel.registers)}" if depth > 1 else ""
                names = kernel.declare(statement, suffix)
                local |= {name: name + suffix for name in names if suffix}
                continue
            for name, own in local.items():
                statement = re.sub(rf"(?<![%\w$.]){re.escape(name)}(?![\w$.])", own, statement)
            predicate = _PREDICATE.match(statement)
            rest = statement[predicate.end() :] if predicate else statement
            opcode, _, operands = rest.partition(" ")
            tokens = tuple(operand.strip() for operand in _OPERAND.findall(operands))
            guard, negated = (predicate[2], bool(predicate[1])) if predicate else (None, False)
            kernel.instructions.append(Instruction(statement, opcode, tokens, guard, negated, source))
