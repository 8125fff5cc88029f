"""Counting what a warp executes: the longest way, loops as often as they run; by hand on small listings."""

import math

from msdeform.bench import sass

# entry of 3; a loop over levels of 2 + points + 2; inside it a loop over points with a fork of 1 against 3
NESTED = """
//--------------------- .text.kernel       --------------------------
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
        /*0020*/                   MOV R2, RZ ;
.L_x_0:
        /*0030*/                   LDG.E.64 R4, [R2.64] ;
        /*0040*/                   MOV R3, RZ ;
.L_x_1:
        /*0050*/                   F2I.FLOOR.NTZ R5, R4 ;
        /*0060*/                   FRND.FLOOR R6, R4 ;
        /*0070*/               @P1 BRA `(.L_x_2) ;
        /*0080*/                   FADD R7, R7, R5 ;
        /*0090*/                   FADD R7, R7, R5 ;
        /*00a0*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*00b0*/                   FMUL R7, R7, R5 ;
.L_x_3:
        /*00c0*/              @!P2 BRA `(.L_x_1) ;
        /*00d0*/                   NOP ;
        /*00e0*/                   IADD3 R2, R2, 0x1, RZ ;
        /*00f0*/                   ISETP.NE.AND P3, PT, R2, R9, PT ;
        /*0100*/               @P3 BRA `(.L_x_0) ;
        /*0110*/                   STG.E [R2.64], R7 ;
        /*0120*/                   EXIT ;
.L_x_4:
        /*0130*/                   BRA `(.L_x_4);
//--------------------- .text.other       --------------------------
.text.other:
        /*0000*/                   EXIT ;
"""


def test_nested_loops_and_the_longer_side_of_a_fork() -> None:
    kernels = sass.kernels(NESTED)
    assert set(kernels) == {"kernel", "other"}
    L, P = 3, 5
    point = 3 + 3 + 1  # two floors and a branch; two additions and a jump, against one product; the branch back
    level = 2 + P * point + 3
    assert sass.executed(kernels["kernel"], sass.sampling_trips(L, P)) == 3 + L * level + 2
    assert sass.executed(kernels["other"], sass.sampling_trips(L, P)) == 1


def loop(floors: int, *inner: sass.Loop, shuffles: int = 0) -> sass.Loop:
    opcodes = ["FRND.FLOOR"] * floors + ["SHFL.BFLY"] * shuffles + [code for one in inner for code in one.opcodes]
    return sass.Loop(0, {0}, list(inner), opcodes)


def test_an_unrolled_loop_takes_several_points_a_round_and_its_rest_follows() -> None:
    trips = sass.sampling_trips(4, 7)
    assert trips([loop(2)], 1) == [7]
    assert trips([loop(8), loop(2)], 1) == [1, 3]  # four at once, then the three that are left


def test_what_other_loops_are() -> None:
    trips = sass.sampling_trips(4, 4, lanes=32)
    points = loop(2, loop(0, shuffles=1), loop(0))
    levels = loop(0, points)
    assert trips([levels, loop(0)], 0) == [4, 4]  # over the levels, and the check of their sizes before
    assert trips(points.inner, 2) == [5, 1]  # halving 32 lanes; channels, of which a lane has one
    assert trips([loop(0, levels)], 0) == [1]  # a grid-stride loop around it all


def test_a_branch_with_its_condition_as_an_operand_goes_on_too() -> None:
    listing = NESTED.replace("@P3 BRA `(.L_x_0)", "@P3 BRA P1, `(.L_x_0)")
    first, second = (
        sass.executed(sass.kernels(text)["kernel"], sass.sampling_trips(2, 2)) for text in (NESTED, listing)
    )
    assert first == second
    assert math.isfinite(first)
