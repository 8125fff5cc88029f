"""What a loop of a kernel hands to its next turn, in Python and in what Triton compiles of it.

Triton 3.6 drops a variable that is set to another one in the loop where both began as the same value. Python, and with
it the interpreter, doesn't, so that every test in the interpreter stays green.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from msdeform.kernels.triton import backward_atomic, backward_sorted, bilinear, forward
from tests.kernels.triton import aot

pytestmark = pytest.mark.aot


class Names:
    """The names that statements read before they set them, and those that they set."""

    def __init__(self, statements: list[ast.stmt], constants: dict[str, Any]) -> None:
        self.read: set[str] = set()
        self.set: set[str] = set()
        self.constants = constants
        for statement in statements:
            self._take(statement)

    def _take(self, node: ast.AST) -> None:
        match node:
            case ast.If():
                self._take(node.test)
                parts = [Names(part, self.constants) for part in _taken(node, self.constants)]
                # what only one of two branches sets may still be read from before
                self.read |= set().union(*(part.read for part in parts)) - self.set
                self.set |= set.union(*(part.set for part in parts)) if len(parts) == 1 else parts[0].set & parts[1].set
            case ast.For() | ast.While():
                self._take(node.iter if isinstance(node, ast.For) else node.test)
                body = Names(node.body, self.constants)
                self.read |= body.read - self.set
                self.set |= body.set
            case ast.AugAssign():
                self.read |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - self.set
                self.set |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
            case _:
                names = [name for name in ast.walk(node) if isinstance(name, ast.Name)]
                self.read |= {name.id for name in names if isinstance(name.ctx, ast.Load)} - self.set
                self.set |= {name.id for name in names if isinstance(name.ctx, ast.Store)}


def _taken(node: ast.If, constants: dict[str, Any]) -> list[list[ast.stmt]]:
    """The branches that a condition leaves: one, if compile-time constants decide it."""
    try:
        return [node.body if eval(ast.unparse(node.test), {"tl": tl, "triton": triton}, constants) else node.orelse]
    except NameError:
        return [node.body, node.orelse]


def carried(function: Any, constants: dict[str, Any]) -> Iterator[tuple[int, set[str]]]:
    """Line and names of every run-time loop of a jit function: what its body sets, and the next turn reads before it
    sets it, or the statements after the loop do, of what was there before the loop."""
    source, first = inspect.getsourcelines(function.fn)
    definition = ast.parse(textwrap.dedent("".join(source))).body[0]
    assert isinstance(definition, ast.FunctionDef)

    def loops(statements: list[ast.stmt], after: set[str], before: set[str]) -> Iterator[tuple[int, set[str]]]:
        known = set(before)
        for index, statement in enumerate(statements):
            rest = Names(statements[index + 1 :], constants)
            live = rest.read | (after - rest.set)
            match statement:
                case ast.If():
                    for part in _taken(statement, constants):
                        yield from loops(part, live, known)
                case ast.For() | ast.While():
                    body = Names(statement.body, constants)
                    test = (
                        Names([ast.Expr(statement.test)], constants).read if isinstance(statement, ast.While) else set()
                    )
                    runs = isinstance(statement, ast.While) or ast.unparse(statement.iter).startswith("range(")
                    if runs:
                        yield first + statement.lineno - 1, body.set & known & (body.read | live | test)
                    yield from loops(statement.body, live | body.read | test, known | body.set)
            known |= Names([statement], constants).set

    yield from loops(definition.body, set(), set(function.arg_names))


def compiled_loops(ttir: str) -> Iterator[tuple[int, int]]:
    """Line in the source and number of carried values of every loop of a kernel's first form."""
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    lines = ttir.splitlines()
    for index, line in enumerate(lines):
        loop = re.match(r"( *)(?:%.* = )?scf\.(?:for|while)\b", line)
        if loop is None:
            continue
        ends = (end for end in lines[index + 1 :] if re.match(rf"{loop[1]}\}}.*loc\(", end))
        place = re.findall(r"loc\((#loc\d*)\)", next(ends))[-1]
        while not re.match(r'"[^"]*":\d+:\d+', places[place]):
            place = re.findall(r"#loc\d*", places[place])[0]
        arguments = re.search(r"iter_args\(([^)]*)\)|scf\.while \(([^)]*)\)", line)
        values = (arguments[1] or arguments[2]).count(" = ") if arguments else 0
        yield int(re.findall(r":(\d+):", places[place])[0]), values


def lost(kernel: Any, functions: list[Any], constants: dict[str, Any], ttir: str) -> tuple[list[str], int]:
    """A sentence for every loop that carries less than its source, and how many loops were compared.

    A loop whose results are all lost is deleted, which shows in the kernel itself: whether it calls one of the other
    functions nobody knows here.
    """
    needed = {line: names for function in functions for line, names in carried(function, constants)}
    loops = list(compiled_loops(ttir))
    there = {line for line, _ in loops}
    gone = [line for line, names in carried(kernel, constants) if names and line not in there]
    sentences, compared = [f"the loop in line {line} is gone" for line in gone], 0
    for line, values in loops:
        compared += line in needed
        if values < len(needed.get(line, ())):
            sentences.append(f"line {line} carries {values} of {sorted(needed[line])}")
    return sentences, compared


MODULES = {"forward": forward, "backward": backward_atomic}
KINDS = [(kind, {}) for kind in (*MODULES, *aot.SORTED)]
KINDS += [("cells", {"dtype": torch.bfloat16, "D": 64}), ("cells", {"D": 4}), ("backward", {"D": 71, "coordinates": 4})]
KINDS += [(kind, {"by_value": False}) for kind in MODULES]


@pytest.mark.parametrize(("kind", "parameters"), KINDS, ids=str)
def test_loops_carry_what_their_source_says(kind: str, parameters: dict[str, Any]) -> None:
    machine = aot.compile_kernel(kind, 90, **parameters)
    modules = MODULES.get(kind, backward_sorted), bilinear
    functions = [f for module in modules for f in vars(module).values() if isinstance(f, triton.JITFunction)]
    sentences, compared = lost(aot._KERNELS[kind], functions, machine.parameters, machine.ttir)
    assert sentences == []
    assert compared > 0 or kind in ("keys", "shares", "points"), "its loops were found"


@triton.jit
def _loses_one(p, N: tl.constexpr):
    a = tl.zeros([32], tl.float32)
    b = a
    for i in range(N):
        a = b
        b = tl.load(p + i * 32 + tl.arange(0, 32))
    tl.store(p + tl.arange(0, 32), a + b)


def test_a_lost_variable_is_noticed() -> None:
    source = ASTSource(fn=_loses_one, signature={"p": "*fp32", "N": "constexpr"}, constexprs={"N": 4})
    ttir = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    assert dict(carried(_loses_one, {})) == {next(compiled_loops(ttir))[0]: {"a", "b"}}
    assert len(lost(_loses_one, [_loses_one], {}, ttir)[0]) == 1, "or Triton carries it by now, and this test may go"


def test_the_sorted_backward_compiles_no_stride() -> None:
    for name, kernel in vars(backward_sorted).items():
        if name.endswith("_kernel"):
            for argument in kernel.params:
                fixed = (
                    argument.is_constexpr or argument.do_not_specialize or argument.name.endswith(("_ptr", "levels"))
                )
                assert fixed, f"{name} is compiled for values of {argument.name}"
