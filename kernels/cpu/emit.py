"""LLVM instructions written as Python arithmetic: the layer between the kernels of this folder and llvmlite.

A kernel is a Python function that runs once and leaves instructions behind: ``a * b + c`` on two `Value` emits a
multiplication and an addition, of single numbers or of whole vectors. What Python decides while it runs (dtypes,
numbers of channels, levels and points) is a constant of the compiled code. LLVM optimises for the processor at hand and
compiles; nothing but the module llvmlite is needed for it, no compiler and no linker.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import llvmlite.binding as llvm
from llvmlite import ir

Float = Literal["float64", "float32", "float16", "bfloat16"]
Compute = Literal["float64", "float32"]
BYTES: dict[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}

I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_TYPES: dict[str, ir.Type] = {
    "float64": ir.DoubleType(),
    "float32": ir.FloatType(),
    "float16": ir.HalfType(),
    "bfloat16": I16,  # LLVM's own bfloat would be rounded by instructions that flush small numbers to zero
    "int64": I64,
    "int32": I32,
}
_CONTRACT = ("contract",)  # a product that is added may become one fused instruction


class Value:
    """A number or a vector of numbers in registers. Arithmetic on it emits instructions; a plain number, or a single
    one beside a vector, is taken for as many as there are lanes. A comparison gives bits."""

    __slots__ = ("_emitter", "ir")

    def __init__(self, emitter: "Emitter", value: Any) -> None:
        self._emitter, self.ir = emitter, value

    @property
    def lanes(self) -> int | None:
        """How many numbers a vector holds; None for a single number."""
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else None

    @property
    def element(self) -> ir.Type:
        return self.ir.type.element if isinstance(self.ir.type, ir.VectorType) else self.ir.type

    @property
    def is_float(self) -> bool:
        return isinstance(self.element, (ir.FloatType, ir.DoubleType, ir.HalfType))

    def _binary(self, other: "Value | float", integer: str, floating: str, *, swap: bool = False) -> "Value":
        a, b = self._emitter.alike(self, other)
        if swap:
            a, b = b, a
        builder = self._emitter.builder
        if self.is_float:
            return Value(self._emitter, getattr(builder, floating)(a.ir, b.ir, flags=_CONTRACT))
        return Value(self._emitter, getattr(builder, integer)(a.ir, b.ir))

    def __add__(self, other: "Value | float") -> "Value":
        return self._binary(other, "add", "fadd")

    __radd__ = __add__

    def __sub__(self, other: "Value | float") -> "Value":
        return self._binary(other, "sub", "fsub")

    def __rsub__(self, other: float) -> "Value":
        return self._binary(other, "sub", "fsub", swap=True)

    def __mul__(self, other: "Value | float") -> "Value":
        return self._binary(other, "mul", "fmul")

    __rmul__ = __mul__

    def __truediv__(self, other: "Value | float") -> "Value":
        return self._binary(other, "sdiv", "fdiv")

    def __rtruediv__(self, other: float) -> "Value":
        return self._binary(other, "sdiv", "fdiv", swap=True)

    def __floordiv__(self, other: "Value | int") -> "Value":
        """Of integers that are not negative."""
        return self._binary(other, "udiv", "fdiv")

    def __mod__(self, other: "Value | int") -> "Value":
        """Of integers that are not negative."""
        return self._binary(other, "urem", "frem")

    def __and__(self, other: "Value | int") -> "Value":
        return self._binary(other, "and_", "and_")

    def __or__(self, other: "Value | int") -> "Value":
        return self._binary(other, "or_", "or_")

    def __lshift__(self, other: "Value | int") -> "Value":
        return self._binary(other, "shl", "shl")

    def __rshift__(self, other: "Value | int") -> "Value":
        """Zeros come in from above."""
        return self._binary(other, "lshr", "lshr")

    def _compare(self, sign: str, other: "Value | float") -> "Value":
        a, b = self._emitter.alike(self, other)
        builder = self._emitter.builder
        compare = builder.fcmp_ordered if self.is_float else builder.icmp_signed
        return Value(self._emitter, compare(sign, a.ir, b.ir))

    def __lt__(self, other: "Value | float") -> "Value":
        return self._compare("<", other)

    def __le__(self, other: "Value | float") -> "Value":
        return self._compare("<=", other)

    def __gt__(self, other: "Value | float") -> "Value":
        return self._compare(">", other)

    def __ge__(self, other: "Value | float") -> "Value":
        return self._compare(">=", other)

    def equals(self, other: "Value | float") -> "Value":
        return self._compare("==", other)


class Variable:
    """A value that changes: what loops carry. LLVM keeps it in registers."""

    def __init__(self, emitter: "Emitter", value: Value) -> None:
        self._emitter = emitter
        with emitter.builder.goto_entry_block():
            self._slot = emitter.builder.alloca(value.ir.type)
        self._type = value.ir.type
        self.set(value)

    def get(self) -> Value:
        return Value(self._emitter, self._emitter.builder.load(self._slot, typ=self._type))

    def set(self, value: Value) -> None:
        self._emitter.builder.store(value.ir, self._slot)


class Emitter:
    """One function ``void name(int64 *arguments)`` while it is written.

    Args:
        arguments: names of the array's entries, each 64 bits: an address, a size or a stride. They are the emitter's
            ``arguments[name]``.
    """

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        name = f"{name}_{next(_count)}"
        self.module = ir.Module(name=name)
        self.module.triple, _, _ = _processor()
        self._function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), name=name)
        self.builder = ir.IRBuilder(self._function.append_basic_block("entry"))
        # variables are made room for in the first block, code begins in the second
        start = self._function.append_basic_block("start")
        self.builder.branch(start)
        self.builder.position_at_end(start)
        base = Value(self, self.builder.ptrtoint(self._function.args[0], I64))
        self.addresses = {name: base + 8 * i for i, name in enumerate(arguments)}
        self.arguments = {name: self.load(address, "int64") for name, address in self.addresses.items()}

    # numbers

    def constant(self, number: float, like: Value) -> Value:
        """A number of the type of ``like``, in every lane."""
        element = like.element
        if like.lanes is None:
            return Value(self, ir.Constant(element, number))
        return Value(self, ir.Constant(like.ir.type, [number] * like.lanes))

    def number(self, number: float, dtype: str, lanes: int | None = None) -> Value:
        if lanes is None:
            return Value(self, ir.Constant(_TYPES[dtype], number))
        return Value(self, ir.Constant(ir.VectorType(_TYPES[dtype], lanes), [number] * lanes))

    def alike(self, a: Value, b: Value | float) -> tuple[Value, Value]:
        """Both as the same type: plain numbers become constants, single numbers are repeated in every lane."""
        if not isinstance(b, Value):
            return a, self.constant(b, a)
        if a.lanes is None and b.lanes is not None:
            return self.spread(a, b.lanes), b
        if b.lanes is None and a.lanes is not None:
            return a, self.spread(b, a.lanes)
        return a, b

    def spread(self, value: Value, lanes: int) -> Value:
        """One number in every lane."""
        vector = ir.VectorType(value.ir.type, lanes)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value.ir, ir.Constant(I32, 0))
        return self.pick(Value(self, first), [0] * lanes)

    def pick(self, a: Value, lanes: Sequence[int], b: Value | None = None) -> Value:
        """The lanes that are named, in that order; those of ``b`` follow those of ``a``."""
        other = ir.Constant(a.ir.type, ir.Undefined) if b is None else b.ir
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return Value(self, self.builder.shuffle_vector(a.ir, other, mask))

    def select(self, condition: Value, a: Value | float, b: Value | float) -> Value:
        """``a`` where the condition holds, else ``b``; one of them may be a plain number."""
        if isinstance(a, Value):
            a, b = self.alike(a, b)
        elif isinstance(b, Value):
            b, a = self.alike(b, a)
        assert isinstance(a, Value)
        assert isinstance(b, Value)
        return Value(self, self.builder.select(condition.ir, a.ir, b.ir))

    def larger(self, a: Value, b: Value | float) -> Value:
        """The larger of two; ``b`` where either is NaN."""
        return self.select(a > b, a, b)

    def smaller(self, a: Value, b: Value | float) -> Value:
        """The smaller of two; ``b`` where either is NaN."""
        return self.select(a < b, a, b)

    def _intrinsic(self, name: str, value: Value) -> Value:
        element = {ir.FloatType: "f32", ir.DoubleType: "f64"}[type(value.element)]
        suffix = element if value.lanes is None else f"v{value.lanes}{element}"
        full = f"llvm.{name}.{suffix}"
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(value.ir.type, [value.ir.type]), name=full)
        return Value(self, self.builder.call(function, [value.ir]))

    def floor(self, value: Value) -> Value:
        return self._intrinsic("floor", value)

    def abs(self, value: Value) -> Value:
        return self._intrinsic("fabs", value)

    def is_nan(self, value: Value) -> Value:
        return Value(self, self.builder.fcmp_unordered("uno", value.ir, value.ir))

    def any(self, bits: Value) -> Value:
        """Whether a bit is set in any lane."""
        if bits.lanes is None:
            return bits
        integer = ir.IntType(bits.lanes)
        packed = self.builder.bitcast(bits.ir, integer)
        return Value(self, self.builder.icmp_unsigned("!=", packed, ir.Constant(integer, 0)))

    def either_bit(self, bits: Sequence[Value]) -> Value:
        """Whether any of some single bits is set."""
        result = bits[0]
        for bit in bits[1:]:
            result = result | bit
        return result

    def add_up(self, vectors: Sequence[Value]) -> Value:
        """The sum of vectors of one length, lane by lane, in pairs."""
        vectors = list(vectors)
        while len(vectors) > 1:
            vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    def sum_of(self, vectors: Sequence[Value]) -> Value:
        """All numbers of all vectors added up, in a fixed order."""
        return self._fold(vectors, lambda a, b: a + b, 0.0)

    def largest_of(self, vectors: Sequence[Value]) -> Value:
        """The largest number of all vectors; NaN are passed over or not, by where they stand."""
        return self._fold(vectors, self.larger, float("-inf"))

    def _fold(self, vectors: Sequence[Value], fold: Callable[[Value, Value], Value], neutral: float) -> Value:
        widest = max(vectors, key=lambda v: v.lanes or 1)
        wide = 1 << ((widest.lanes or 1) - 1).bit_length()
        total = self.widen(vectors[0], wide, neutral)
        for vector in vectors[1:]:
            total = fold(total, self.widen(vector, wide, neutral))
        while wide > 1:
            wide //= 2
            total = fold(self.pick(total, range(wide)), self.pick(total, range(wide, 2 * wide)))
        return self.lane(total, 0)

    def widen(self, vector: Value, lanes: int, filling: float) -> Value:
        """A vector with more lanes, the new ones filled with a number."""
        have = vector.lanes
        assert have is not None
        if have == lanes:
            return vector
        return self.pick(vector, [i if i < have else have for i in range(lanes)], self.constant(filling, vector))

    def lane(self, vector: Value, i: int) -> Value:
        return Value(self, self.builder.extract_element(vector.ir, ir.Constant(I32, i)))

    def sum_rows(self, rows: Sequence[Value]) -> Value:
        """As many vectors as each has lanes (a power of two): lane i of the result is the sum of vector i."""
        rows = list(rows)
        lanes = rows[0].lanes
        assert lanes == len(rows)
        group = lanes // 2
        while group:  # each step adds halves of groups: half as many vectors, of groups half as wide
            lower = [i for i in range(2 * lanes) if i // group % 2 == 0]
            upper = [i + group for i in lower]
            rows = [
                self.pick(a, lower, b) + self.pick(a, upper, b)
                for a, b in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
            ]
            group //= 2
        (total,) = rows
        # step by step the first half went to even groups: lanes lie in the order of reversed bits
        bits = lanes.bit_length() - 1
        return self.pick(total, [int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(lanes)])

    def to_int32(self, value: Value) -> Value:
        """Truncated; the number has to be one that 32 bits hold."""
        return Value(self, self.builder.fptosi(value.ir, self._shaped(I32, value.lanes)))

    def to_float(self, value: Value, dtype: str) -> Value:
        return Value(self, self.builder.sitofp(value.ir, self._shaped(_TYPES[dtype], value.lanes)))

    def to_int64(self, value: Value) -> Value:
        convert = self.builder.fptosi if value.is_float else self.builder.sext
        return Value(self, convert(value.ir, self._shaped(I64, value.lanes)))

    def bits_to_float(self, value: Value, dtype: str) -> Value:
        """The floating-point number of these bits."""
        return Value(self, self.builder.bitcast(value.ir, self._shaped(_TYPES[dtype], value.lanes)))

    @staticmethod
    def _shaped(element: ir.Type, lanes: int | None) -> ir.Type:
        return element if lanes is None else ir.VectorType(element, lanes)

    def exp(self, x: Value, dtype: Compute) -> Value:
        """e**x for x of zero and below, to about one unit in the last place; NaN stays NaN."""
        single = dtype == "float32"
        log2_e = 1.4426950408889634
        # ln 2 in two parts: the first has so few bits that its product with an exponent is exact
        high, low = (0.693359375, -2.12194440054690583e-4) if single else (0.6931471803691238, 1.9082149292705877e-10)
        least = -87.0 if single else -708.0
        settled = self.larger(x, least)
        exponent = self.floor(settled * log2_e + 0.5)
        rest = settled - exponent * high - exponent * low
        factorial, powers = 1.0, [1.0]
        for k in range(1, 8 if single else 14):  # the series is as exact as the dtype for |rest| <= ln(2) / 2
            factorial *= k
            powers.append(1.0 / factorial)
        result = self.constant(powers[-1], x)
        for power in reversed(powers[:-1]):
            result = result * rest + power
        if single:
            scale = self.bits_to_float((self.to_int32(exponent) + 127) << 23, "float32")
        else:
            scale = self.bits_to_float((self.to_int64(self.to_int32(exponent)) + 1023) << 52, "float64")
        result = self.select(x < least, 0.0, result * scale)
        return self.select(self.is_nan(x), x, result)

    # memory

    def load(self, address: Value, dtype: str, lanes: int | None = None) -> Value:
        """Numbers as they lie in memory; ``lanes`` of them one after another."""
        kind = self._shaped(_TYPES[dtype], lanes)
        pointer = self.builder.inttoptr(address.ir, ir.PointerType())
        return Value(self, self.builder.load(pointer, typ=kind, align=BYTES[dtype]))

    def store(self, value: Value, address: Value, dtype: str) -> None:
        pointer = self.builder.inttoptr(address.ir, ir.PointerType())
        self.builder.store(value.ir, pointer, align=BYTES[dtype])

    def load_as(self, address: Value, stored: Float, compute: str, lanes: int | None = None) -> Value:
        """Numbers of any dtype, as float32 or float64."""
        value = self.load(address, stored, lanes)
        if stored == "bfloat16":  # the upper half of a float32
            wide = Value(self, self.builder.zext(value.ir, self._shaped(I32, lanes)))
            value, stored = self.bits_to_float(wide << 16, "float32"), "float32"
        if BYTES[stored] < BYTES[compute]:
            return Value(self, self.builder.fpext(value.ir, self._shaped(_TYPES[compute], lanes)))
        return value

    def store_as(self, value: Value, address: Value, compute: str, stored: Float) -> None:
        """float32 or float64 rounded once to the dtype in memory (float64 to 16 bits: by way of float32)."""
        lanes = value.lanes
        if compute == "float64" and stored != "float64":
            value = Value(self, self.builder.fptrunc(value.ir, self._shaped(_TYPES["float32"], lanes)))
        if stored == "float16":
            value = Value(self, self.builder.fptrunc(value.ir, self._shaped(_TYPES["float16"], lanes)))
        elif stored == "bfloat16":
            bits = Value(self, self.builder.bitcast(value.ir, self._shaped(I32, lanes)))
            rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16  # to the nearest, ties to even
            rounded = self.select(self.is_nan(value), 0x7FC0, rounded)
            value = Value(self, self.builder.trunc(rounded.ir, self._shaped(I16, lanes)))
        self.store(value, address, stored)

    def prefetch(self, address: Value, size: int) -> None:
        """Begin to bring memory of some bytes into the second cache; any address is allowed."""
        name = "llvm.prefetch.p0"
        function = self.module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
            function = ir.Function(self.module, signature, name=name)
        to_read, second_cache, data = (ir.Constant(I32, number) for number in (0, 2, 1))
        for offset in range(0, size, 64):
            pointer = self.builder.inttoptr((address + offset).ir, ir.PointerType())
            self.builder.call(function, [pointer, to_read, second_cache, data])

    def fetch_add(self, argument: str, amount: int) -> Value:
        """An argument before ``amount`` is added to it, in one step among all threads."""
        pointer = self.builder.inttoptr(self.addresses[argument].ir, ir.PointerType())
        return Value(self, self.builder.atomic_rmw("add", pointer, ir.Constant(I64, amount), "monotonic"))

    # control

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int) -> Iterator[Value]:
        """The body for every 64-bit integer from ``start`` up to ``stop``, the latter not included."""
        counter = Variable(self, start if isinstance(start, Value) else self.number(start, "int64"))
        test, body, end = (self._function.append_basic_block(name) for name in ("test", "body", "end"))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch((counter.get() < stop).ir, body, end)
        self.builder.position_at_end(body)
        i = counter.get()
        yield i
        counter.set(i + 1)
        self.builder.branch(test)
        self.builder.position_at_end(end)

    def loop_over(self, count: int, at_once: int) -> Iterator[Value]:
        """Every integer below a constant, for a ``for`` that runs to its end: the body is emitted ``at_once`` times in
        a loop, and once more for each of those that are left over."""
        turns = count // at_once
        if turns > 1:
            with self.loop(0, turns) as turn:
                for i in range(at_once):
                    yield turn * at_once + i
        for i in range(at_once * turns if turns > 1 else 0, count):
            yield self.number(i, "int64")

    @contextmanager
    def until_taken(self, counter: str, stop: Value) -> Iterator[Value]:
        """The body for every integer below ``stop`` that this thread is the first to take from an argument that all
        threads count up."""
        test, body, end = (self._function.append_basic_block(name) for name in ("take", "taken", "none_left"))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        i = self.fetch_add(counter, 1)
        self.builder.cbranch((i < stop).ir, body, end)
        self.builder.position_at_end(body)
        yield i
        self.builder.branch(test)
        self.builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value, *, likely: bool | None = None) -> Iterator[None]:
        with self.builder.if_then(condition.ir, likely=likely):
            yield

    @contextmanager
    def either(self, condition: Value, *, likely: bool | None = None) -> Iterator[tuple[Any, Any]]:
        with self.builder.if_else(condition.ir, likely=likely) as branches:
            yield branches

    def finish(self) -> ir.Module:
        self.builder.ret_void()
        return self.module


# LLVM is used by one thread at a time. One that forks waits for it, as its child would for a thread it does not have.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_compiler: Any = None  # (machine, engine): made at first use, never freed, as code that is called must not be
_count = itertools.count()


@cache
def _processor() -> tuple[str, str, Any]:
    """Of this machine: LLVM's name of the platform, of the processor, and its features."""
    with _lock:
        return llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features()


def vector_bytes() -> int:
    """Size of the processor's widest vector registers."""
    _, _, features = _processor()
    return 64 if features.get("avx512f") else 32 if features.get("avx") else 16


def compile_module(module: ir.Module) -> int:
    """Address of the module's function as machine code of this processor."""
    with _lock:
        machine, engine = _load_compiler()
        engine.add_module(_optimised(module, machine))
        engine.finalize_object()
        return engine.get_function_address(module.name)


def assembly(module: ir.Module) -> str:
    """The machine code of this processor as text."""
    with _lock:
        machine, _ = _load_compiler()
        return machine.emit_assembly(_optimised(module, machine))


def _optimised(module: ir.Module, machine: Any) -> Any:
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # the kernels are vectors already, and write out the loops that gain from it
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return parsed


def _load_compiler() -> Any:
    global _compiler  # noqa: PLW0603
    if _compiler is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        triple, name, features = _processor()
        machine = llvm.Target.from_triple(triple).create_target_machine(
            cpu=name, features=features.flatten(), opt=3, jit=True
        )
        _compiler = machine, llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    return _compiler
