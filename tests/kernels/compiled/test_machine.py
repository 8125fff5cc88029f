"""What the machine must refuse, and what it must get right, on PTX written by hand."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from msdeform.bench.static.ptx.counters import Counters
from msdeform.bench.static.ptx.machine import Program, execute
from msdeform.bench.static.ptx.memory import Allocation, Memory
from msdeform.bench.static.ptx.parse import Fault, parse

pytestmark = pytest.mark.compiled

FORM = """
.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<99>;
    .shared .align 16 .b8 shared[256];
    ld.param.u64 %rd1, [k_param_0];
    ld.param.u64 %rd2, [k_param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;  // where this thread reads
    add.s64 %rd5, %rd2, %rd3;  // where it stores
    {body}
    ret;
}}
"""


def run(
    body: str,
    source: np.ndarray | None = None,
    target: np.ndarray | None = None,
    *,
    programs: int = 1,
    threads: int = 32,
    unwritten: Sequence[int] = (),
    counters: Counters | None = None,
) -> np.ndarray:
    """What a kernel with these instructions leaves in `target`, 4 bytes a thread."""
    source = np.arange(threads, dtype=np.uint32) if source is None else source
    target = np.zeros(threads, np.uint32) if target is None else target
    written = np.ones(source.nbytes, np.uint8)
    written[list(unwritten)] = 0
    source.view(np.uint8)[list(unwritten)] = 0xFF
    allocations = [
        Allocation("source", source.ctypes.data, source.nbytes, written if len(unwritten) else None),
        Allocation("target", target.ctypes.data, target.nbytes),
    ]
    parameters = {f"k_param_{k}": struct.pack("<Q", a.start) for k, a in enumerate(allocations)}
    program = Program(parse(FORM.format(body=body)))
    execute(program, (programs,), (threads,), parameters, Memory(allocations), 0, counters)
    return target


def bits(value: float) -> str:
    return "0f" + struct.pack(">f", value).hex()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("ld.global.b32 %r3, [%rd4+4];", r"thread 31.*reads 4 bytes out of bounds: byte 128 of the 128 of source"),
        ("ld.global.b32 %r3, [%rd4-4];", r"thread 0.*reads 4 bytes out of bounds"),
        ("st.global.b32 [%rd5+4], %r1;", r"stores 4 bytes out of bounds: byte 128 of the 128 of target"),
        ("red.global.add.u32 [%rd5+4], %r1;", r"updates 4 bytes out of bounds"),
        ("ld.global.v2.b32 {%r3, %r4}, [%rd4];", r"thread 1.*reads 8 bytes at an address that is no multiple of 8"),
        ("st.global.b32 [%rd5+2], %r1;", r"stores 4 bytes at an address that is no multiple of 4"),
        ("mov.b64 %rd6, 0; ld.global.b32 %r3, [%rd6];", r"reads 4 bytes out of bounds: address 0"),
        ("st.global.b32 [%rd2], %r1;", r"two threads store different bits in one instruction: byte 0"),
        ("st.shared.b32 [shared], %r1;", r"two threads store different bits to shared memory at 0"),
        ("ld.shared.b32 %r3, [shared];", r"reads 4 bytes of shared memory never written, at 0"),
        ("st.shared.b32 [shared+256], %r1;", r"stores 4 bytes at 256 of 256 bytes of shared memory"),
        ("st.shared.b32 [shared+2], 1;", r"at 2 of 256 bytes of shared memory, no multiple of 4"),
        ("st.global.b32 [%rd5], %r7;", r"what is stored depends on a register that was never set"),
        ("add.s32 %r8, %r7, 1; setp.eq.s32 %p1, %r8, 0; @%p1 bra $L; $L:", r"a condition depends on a register"),
        ("cvt.u64.u32 %rd7, %r7; add.s64 %rd7, %rd7, %rd4; ld.global.b32 %r3, [%rd7];", r"an address depends on"),
        ("setp.lt.u32 %p1, %r1, 7; @%p1 mov.u32 %r3, 1; st.global.b32 [%rd5], %r3;", r"thread 7,.*never set"),
        ("setp.lt.u32 %p1, %r1, 31; @%p1 bra $L; bra.uni $E; $L: bar.sync 0; $E:", r"waits at a barrier that other"),
        ("setp.lt.u32 %p1, %r1, 31; @%p1 bar.sync 0;", r"waits at a barrier that other threads"),
        ("setp.lt.u32 %p1, %r1, 9; @!%p1 bra $E; shfl.sync.idx.b32 %r3, %r1, 0, 31, -1; $E:", r"lanes .* never come"),
        ("setp.lt.u32 %p1, %r1, 9; @!%p1 bra $E; shfl.sync.idx.b32 %r3, %r1, 9, 31, 511; $E:", r"from lane 9, which"),
        ("shfl.sync.idx.b32 %r3, %r1, 0, 31, 1;", r"thread 1,.*is not one of the lanes that it names"),
        ("div.s32 %r3, %r1, %r2;", r"divides an integer by zero"),
        ("trap;", r"stops the kernel"),
    ],
)
def test_a_fault_is_one_sentence(body: str, says: str) -> None:
    with pytest.raises(Fault, match=says) as caught:
        run(body)
    assert str(caught.value).startswith("k: program (0, 0, 0) thread ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.b32 %r3, %r1;",
        "add.rz.f32 %r3, %r1, %r1;",  # a rounding that is not implemented
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r1, %r1;",
        "ld.local.b32 %r3, [%rd4];",
        "atom.global.add.u32 %r3, [%rd5], 1; st.global.b32 [%rd5], %r3;",  # the order of atomics is not kept
    ],
)
def test_an_unknown_instruction_is_named(instruction: str) -> None:
    with pytest.raises(Fault, match="k: unknown instruction '") as caught:
        run(instruction)
    assert instruction.split(";", maxsplit=1)[0] in str(caught.value)


def test_memory_that_nothing_wrote() -> None:
    run("ld.global.b32 %r3, [%rd4];")
    with pytest.raises(Fault, match="thread 3,.*reads 4 bytes never written: byte 12 of the 128 of source"):
        run("ld.global.b32 %r3, [%rd4];", unwritten=[12, 13, 14, 15])


def test_programs_that_disagree() -> None:
    with pytest.raises(Fault, match=r"stores other bits than another program: byte 0 .* target"):
        run("st.global.b32 [%rd5], %r2;", programs=2, threads=8192)  # not in one vector of threads
    with pytest.raises(Fault, match=r"two threads store different bits"):
        run("st.global.b32 [%rd5], %r2;", programs=2)
    assert (run("st.global.b32 [%rd5], 7;", programs=2) == 7).all(), "the same bits are no race"
    body = "setp.eq.u32 %p1, %r2, 0; @%p1 st.global.b32 [%rd5], 7; ld.global.b32 %r3, [%rd2];"
    with pytest.raises(Fault, match="reads what another program stores in this launch"):
        run(body, programs=2, threads=8192)


def test_branches_come_together() -> None:
    # odd lanes take another way, of another length, through a loop of as many turns as their number
    body = """
    and.b32 %r3, %r1, 1;  mov.u32 %r4, 0;  mov.u32 %r5, %r1;
    setp.eq.u32 %p1, %r3, 0;  @%p1 bra $EVEN;
    $LOOP: add.s32 %r4, %r4, 2;  add.s32 %r5, %r5, -1;
    setp.gt.s32 %p2, %r5, 0;  @%p2 bra $LOOP;
    bra.uni $END;
    $EVEN: mov.u32 %r4, 100;
    $END: shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1;
    st.global.b32 [%rd5], %r6;"""
    lane = np.arange(64)
    expected = np.where(lane % 2 == 0, 2 * (lane + 1), 100)
    assert (run(body, threads=64) == expected).all()


def test_a_barrier_orders_two_warps() -> None:
    body = """
    mov.u32 %r9, shared;  shl.b32 %r3, %r1, 2;  add.s32 %r4, %r9, %r3;  xor.b32 %r5, %r3, 128;
    add.s32 %r5, %r9, %r5;
    setp.lt.u32 %p1, %r1, 32;  @%p1 bra $FIRST;
    st.shared.b32 [%r4], %r1;  bra.uni $ALL;
    $FIRST: st.shared.b32 [%r4], %r1;
    $ALL: bar.sync 0;
    ld.shared.b32 %r6, [%r5];  st.global.b32 [%rd5], %r6;"""
    assert (run(body, threads=64) == np.arange(64) ^ 32).all()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("shfl.sync.idx.b32 %r3, %r1, 5, 31, -1;", lambda t: 0 * t + 5),
        ("shfl.sync.up.b32 %r3, %r1, 1, 0, -1;", lambda t: np.maximum(t - 1, 0)),
        ("shfl.sync.down.b32 %r3|%p1, %r1, 2, 31, -1;", lambda t: np.where(t < 30, t + 2, t)),
        ("shfl.sync.bfly.b32 %r3, %r1, 3, 31, -1;", lambda t: t ^ 3),
        ("shfl.sync.idx.b32 %r3, %r1, 1, 6175, -1;", lambda t: t // 8 * 8 + 1),  # segments of eight
        ("redux.sync.add.s32 %r3, %r1, -1;", lambda t: 0 * t + 496),
        ("setp.lt.u32 %p1, %r1, 3; vote.sync.ballot.b32 %r3, %p1, -1;", lambda t: 0 * t + 7),
        ("match.any.sync.b32 %r3, %r2, -1;", lambda t: 0 * t + 0xFFFFFFFF),
        ("activemask.b32 %r3;", lambda t: 0 * t + 0xFFFFFFFF),
        ("bfe.u32 %r3, %r1, 1, 2;", lambda t: t >> 1 & 3),
        ("bfe.s32 %r3, %r1, 1, 2;", lambda t: (((t >> 1 & 3) ^ 2) - 2) % 2**32),
        ("prmt.b32 %r3, %r1, 7, 0x4000;", lambda t: t * 0x10101 + (7 << 24)),
        ("prmt.b32 %r3, %r1, %r90, 0x0U;", lambda t: t * 0x1010101),
        ("lop3.b32 %r3, %r1, 6, 3, 0xea;", lambda t: t & 6 | 3),
        ("shf.l.wrap.b32 %r3, %r1, 5, 1;", lambda t: 10 + (t >> 31)),
        ("mul.hi.u32 %r3, %r1, 0x80000000;", lambda t: t >> 1),
        ("sub.s32 %r4, %r1, 9; div.s32 %r3, %r4, 4;", lambda t: np.trunc((t - 9) / 4).astype(int) % 2**32),
        ("sub.s32 %r4, %r1, 9; rem.s32 %r3, %r4, 4;", lambda t: np.fmod(t - 9, 4) % 2**32),
        ("shl.b32 %r3, 1, %r1; shl.b32 %r3, %r3, 32;", lambda t: 0 * t),
        ("popc.b32 %r3, %r1;", lambda t: np.array([int(x).bit_count() for x in t])),
        ("selp.b32 %r3, 1, %r90, 1;", lambda t: 0 * t + 1),  # what is not chosen may be undefined
        ("{ .reg .b32 tmp; mov.b64 {tmp, %r3}, 0x500000000; }", lambda t: 0 * t + 5),
    ],
)
def test_integers_and_lanes(body: str, expected: object) -> None:
    result = run(f"{body} st.global.b32 [%rd5], %r3;")
    assert (result == expected(np.arange(32))).all()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # (1 + 2**-12)**2 - (1 + 2**-11) is 2**-24, lost if the product is rounded first
        (f"mov.b32 %r4, {bits(1 + 2**-12)}; fma.rn.f32 %r3, %r4, %r4, {bits(-(1 + 2**-11))};", 2.0**-24),
        (f"max.f32 %r3, {bits(float('nan'))}, {bits(2.0)};", 2.0),
        (f"max.f32 %r3, {bits(1.0)}, {bits(float('nan'))}, {bits(2.0)};", 2.0),
        (f"min.NaN.f32 %r3, {bits(1.0)}, {bits(float('nan'))}, {bits(2.0)};", float("nan")),
        (f"max.NaN.f32 %r3, {bits(float('nan'))}, {bits(2.0)};", float("nan")),
        (f"mul.ftz.f32 %r3, {bits(1e-30)}, {bits(1e-10)};", 0.0),
        (f"add.sat.f32 %r3, {bits(0.75)}, {bits(0.75)};", 1.0),
        (f"cvt.rmi.f32.f32 %r3, {bits(-1.5)};", -2.0),
        (f"cvt.rni.f32.f32 %r3, {bits(2.5)};", 2.0),
        (f"cvt.rzi.s32.f32 %r4, {bits(-3e9)}; cvt.rn.f32.s32 %r3, %r4;", -(2.0**31)),
        (f"cvt.rzi.s32.f32 %r4, {bits(float('nan'))}; cvt.rn.f32.s32 %r3, %r4;", 0.0),
        (f"cvt.rn.f16.f32 %rs1, {bits(2049.0)}; cvt.f32.f16 %r3, %rs1;", 2048.0),
        (f"cvt.rn.bf16.f32 %rs1, {bits(257.0)}; cvt.f32.bf16 %r3, %rs1;", 256.0),
        (f"cvt.rn.bf16x2.f32 %r4, {bits(3.0)}, {bits(257.0)}; and.b32 %r3, %r4, 0xffff0000;", 3.0),
        (f"setp.ltu.f32 %p1, {bits(float('nan'))}, 0f00000000; selp.b32 %r3, {bits(1)}, 0, %p1;", 1.0),
        (f"setp.ne.f32 %p1, {bits(float('nan'))}, 0f00000000; selp.b32 %r3, {bits(1)}, 0, %p1;", 0.0),
        (f"mov.b64 %rd6, {{{bits(1)[:2]}40000000, %r1}}; mul.f32x2 %rd7, %rd6, %rd6; cvt.u32.u64 %r3, %rd7;", 4.0),
        (f"mov.b16 %rs1, 0x4000; sub.rn.f32.f16 %r3, %rs1, {bits(0.5)};", 1.5),
        (f"mov.b16 %rs1, 0x4000; fma.rn.f32.bf16 %r3, %rs1, %rs1, {bits(1.0)};", 5.0),
        ("mov.b32 %r4, 0x40003c00; fma.rn.f16x2 %r5, %r4, %r4, %r4; shr.u32 %r6, %r5, 16; cvt.u16.u32 %rs1, %r6;"
         "cvt.f32.f16 %r3, %rs1;", 6.0),
    ],
)  # fmt: skip
def test_floats(body: str, expected: float) -> None:
    result = run(f"{body} st.global.b32 [%rd5], %r3;").view(np.float32)
    np.testing.assert_array_equal(result, np.full(32, expected, np.float32))


def test_atomics_add_up_over_programs() -> None:
    target = np.zeros(4, np.float32)
    run(f"red.global.add.v4.f32 [%rd2], {{{', '.join([bits(1.0)] * 4)}}};", target=target, programs=3)
    assert (target == 96).all()
    # each addition is rounded: 256 + 1 is 256 in bfloat16
    halves = np.full(1, 0x43800000, np.uint32)
    run("red.global.add.noftz.bf16x2 [%rd2], 0x3f803f80;", target=halves)
    assert halves.item() == 0x43804200, "256 and 32"


def test_counters() -> None:
    counters = Counters()
    body = """
    ld.global.b32 %r3, [%rd4];
    shl.b32 %r4, %r1, 7;  cvt.u64.u32 %rd6, %r4;  add.s64 %rd6, %rd2, %rd6;
    red.global.add.u32 [%rd6], %r3;
    shfl.sync.bfly.b32 %r5, %r3, 1, 31, -1;
    and.b32 %r6, %r1, 1;  shl.b32 %r6, %r6, 7;
    mov.u32 %r7, shared;  add.s32 %r7, %r7, %r6;
    st.shared.b32 [%r7], 1;"""
    run(body, target=np.zeros(1024, np.uint32), programs=2, counters=counters)
    assert counters.opcodes["shl.b32"] == 4, "two of them, in two warps"
    assert counters.wavefronts_by == {"global load": 2, "reduction": 64, "shuffle": 2, "shared store": 4}
    assert counters.wavefronts == 72
    assert (counters.sectors, counters.reductions, counters.shared_conflicts) == (8, 64, 2)
    assert counters.warp_instructions == sum(counters.opcodes.values())


def test_additions_to_shared_memory_tell_what_they_found() -> None:
    """One lane after the other, of all that add to one place; programs each have their own."""
    body = """
    mov.u32 %r9, shared;  setp.lt.u32 %p1, %r1, 2;  shl.b32 %r3, %r1, 2;  add.s32 %r4, %r9, %r3;
    @%p1 st.shared.b32 [%r4], 100;
    bar.sync 0;
    and.b32 %r5, %r1, 1;  shl.b32 %r5, %r5, 2;  add.s32 %r5, %r9, %r5;
    atom.shared.add.u32 %r6, [%r5], %r1;
    bar.sync 0;
    ld.shared.b32 %r7, [shared+4];
    setp.eq.u32 %p2, %r1, 0;  selp.b32 %r6, %r7, %r6, %p2;  st.global.b32 [%rd5], %r6;"""
    before = [100 + sum(range(t % 2, t, 2)) for t in range(64)]
    expected = [100 + sum(range(1, 64, 2)), *before[1:]]
    assert run(body, threads=64, programs=2).tolist() == expected


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (
            "st.shared.b32 [%r4], %r1;",
            "ld.shared.b32 %r6, [%r5];",
            "reads shared .* another warp stores",
        ),
        (
            "ld.shared.b32 %r6, [%r5];",
            "st.shared.b32 [%r4], %r1;",
            "stores shared .* another warp reads",
        ),
        ("st.shared.b32 [%r4], 7;", "st.shared.b32 [%r5], 7;", "stores shared memory that another warp stores, with"),
        ("st.shared.b32 [%r4], 7;", "atom.shared.add.u32 %r6, [%r5], 1;", "adds to shared memory that another warp st"),
        (
            "atom.shared.add.u32 %r6, [%r5], 1;",
            "ld.shared.b32 %r6, [%r4];",
            "reads shared .* another warp add",
        ),
    ],
)
def test_warps_that_do_not_wait_for_each_other(first: str, second: str, says: str) -> None:
    """Two warps use each other's words: with a barrier between, they may."""
    body = """
    mov.u32 %r9, shared;  shl.b32 %r3, %r1, 2;  add.s32 %r4, %r9, %r3;  xor.b32 %r5, %r3, 128;  add.s32 %r5, %r9, %r5;
    st.shared.b32 [%r4], %r1;
    bar.sync 0;"""
    run(f"{body} {first} bar.sync 0; {second}", threads=64)
    with pytest.raises(Fault, match=says):
        run(f"{body} {first} {second}", threads=64)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("ld.shared.b32 %r6, [shared];", "@%p1 st.shared.b32 [shared], 7;", "stores shared .* another warp reads"),
        ("atom.shared.add.u32 %r6, [shared], 1;", "@%p1 ld.shared.b32 %r6, [shared];", "reads shared .* warp adds to"),
        ("st.shared.b32 [shared], 7;", "@%p1 ld.shared.b32 %r6, [shared];", "reads shared .* another warp stores"),
    ],
)
def test_the_last_of_several_warps_does_not_stand_for_the_others(first: str, second: str, says: str) -> None:
    """All warps use one word, and the last of them alone goes on."""
    start = "setp.eq.u32 %p1, %r1, 63; @%p1 st.shared.b32 [shared], 7; bar.sync 0;"
    run(f"{start} {first} bar.sync 0; {second}", threads=64)
    with pytest.raises(Fault, match=says):
        run(f"{start} {first} {second}", threads=64)
