"""`msdeform bench cpu-code`: what is counted, on a piece of assembly and on the kernels' own."""

import pytest

pytest.importorskip("llvmlite", reason="the CPU backend needs llvmlite")

from msdeform.bench.cpu import code as counting
from msdeform.cli import main

ASSEMBLY = """
.LBB0_1:
\tmovq\t%rax, %rbx
.LBB0_2:
\tvmovups\t(%rax), %zmm0
\tjne\t.LBB0_5
.LBB0_3:
{loop}
\tvmovups\t%zmm0, (%rax)
\tjb\t.LBB0_3
\tincq\t%rax
\tjl\t.LBB0_2
\tjmp\t.LBB0_1
.LBB0_5:
\tvaddps\t%zmm0, %zmm0, %zmm0
\tjmp\t.LBB0_3
"""


def test_the_loop_over_points_counts_as_often_as_it_turns() -> None:
    loop = "\n".join(["\tvfmadd231ps\t(%rax), %zmm0, %zmm1"] * 20)
    counts = counting.count(ASSEMBLY.format(loop=loop), 3)
    # before the loop two, in it 22, after it two
    assert counts == (2 + 3 * 22 + 2, 1 + 3 * 21, 1 + 3 * 20, 3)


def test_what_is_fetched_ahead_is_not_counted() -> None:
    """The loop over heads that says where points lie is, without the loop that fetches their pixels."""
    fetching = "\n".join(["\tprefetcht1\t(%rax)"] * 20)
    locating = (
        f".LBB0_7:\n\tvmulps\t%zmm0, %zmm1, %zmm2\n.LBB0_8:\n{fetching}\n\tjl\t.LBB0_8\n\tincq\t%rax\n\tjl\t.LBB0_7"
    )
    loop = "\n".join(["\tvfmadd231ps\t(%rax), %zmm0, %zmm1"] * 20)
    alone, both = (counting.count(code + ASSEMBLY.format(loop=loop), 3) for code in ("", locating))
    assert both == (alone.all + 3, alone.vector + 1, alone.loads, alone.stores)


def test_code_without_a_loop_over_points_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a loop over points"):
        counting.count("\tretq", 4)


def test_a_line_for_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llvmlite")
    assert main(["bench", "cpu-code", "--channels", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["32", dtype, direction] for dtype in ("float32", "bfloat16") for direction in ("forward", "backward")
    ]
    assert all(4 < float(line.split()[3]) < 1000 for line in lines[1:])
