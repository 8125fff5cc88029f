"""The CPU backend in other processes and threads: forked, spawned, interrupted, and asked for by several at once."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FORKS = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")

# every call is worth a thread, and results lie in memory that is kept; a call's answer is held against the reference
COMMON = """
import os, signal, sys, threading
import torch
from msdeform.kernels.cpu import launch, memory
from msdeform.kernels.diagnostics.checks import Case, check_case
launch._WORTH_A_THREAD = 1
memory.LARGE = 64
torch.set_num_threads(3)

def right(D=8, P=2, coordinates=2, dtype=torch.float32, seed=0):
    case = Case(B=1, Q=40, H=1, D=D, P=P, sizes=((6, 7), (3, 2)), dtype=dtype, coordinates=coordinates, seed=seed)
    breaches = [finding for finding in check_case(case, ["cpu"], "cpu") if not finding.comparison.ok]
    assert not breaches, (case, breaches)
"""


def python(folder: Path, source: str, **variables: str) -> str:
    """What a script prints, run by a new interpreter that has to end well."""
    script = folder / "script.py"
    script.write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    answer = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert answer.returncode == 0, f"exit status {answer.returncode}: {answer.stdout[-500:]}{answer.stderr[-3000:]}"
    return answer.stdout


@pytest.mark.parametrize("method", [pytest.param("fork", marks=FORKS), pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(method: str, tmp_path: Path) -> None:
    """After the parent's threads have run: a kind that the parent has compiled, and a new one.

    PyTorch's own threads do not survive a fork, so only this backend's calls are made in the workers.
    """
    source = """
from msdeform.kernels.diagnostics.checks import evaluate, make_inputs

def answer(P):
    torch.set_num_threads(3)
    case = Case(B=1, Q=40, H=1, D=8, P=P, sizes=((6, 7), (3, 2)))
    return list(evaluate(case, make_inputs(case), torch.ones(1, 40, 8), "cpu").values())

class Set(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        threads = threading.enumerate()
        assert not any(thread.name.startswith("msdeform") for thread in threads) or i > 0
        answers = answer(2), answer(1)
        assert sum(thread.name.startswith("msdeform") for thread in threading.enumerate()) == 2
        return answers

if __name__ == "__main__":
    answer(2)
    loader = torch.utils.data.DataLoader(
        Set(), num_workers=1, batch_size=None, multiprocessing_context="METHOD", timeout=100
    )
    for found in loader:
        for got, want in zip(found, (answer(2), answer(1)), strict=True):
            assert all(map(torch.equal, got, want))
    print("done")
"""
    assert python(tmp_path, COMMON + source.replace("METHOD", method)) == "done\n"


@FORKS
def test_a_fork_while_another_thread_compiles_or_waits(tmp_path: Path) -> None:
    """A lock that a thread of the parent holds must not stay locked in the child, which has no such thread."""
    source = """
import itertools
stop = threading.Event()

def compile_on():
    for D, P in itertools.product(range(9, 30), range(1, 5)):
        if stop.is_set():
            return
        right(D, P)

def fork(answers):
    for P in range(1, 4):
        child = os.fork()
        if not child:
            signal.alarm(60)
            try:
                right()  # known
                right(P=P)  # compiled by the child
                os._exit(0)
            finally:
                os._exit(1)
        answers.append(os.waitpid(child, 0)[1])

right()
others = [threading.Thread(target=compile_on), threading.Thread(target=lambda: [right() for _ in range(100)])]
answers = []
forking = threading.Thread(target=fork, args=(answers,))
for thread in (*others, forking):
    thread.start()
forking.join()
stop.set()
for thread in others:
    thread.join()
assert answers == [0] * 3, answers
right(seed=1)
print("done")
"""
    assert python(tmp_path, COMMON + source) == "done\n"


@FORKS
def test_a_forked_child_writes_to_no_result_of_its_parent(tmp_path: Path) -> None:
    source = """
result = launch.new_empty(torch.empty(0), 100).fill_(1)
kept = launch.new_empty(torch.empty(0), 100).fill_(2)
address = kept.data_ptr()
del kept
child = os.fork()
if not child:
    result.fill_(3)
    again = launch.new_empty(torch.empty(0), 100).fill_(4)
    os._exit(0 if again.data_ptr() == address else 1)
assert os.waitpid(child, 0)[1] == 0
again = launch.new_empty(torch.empty(0), 100)
assert again.data_ptr() == address
print(result.unique().tolist(), again.unique().tolist())
"""
    assert python(tmp_path, COMMON + source) == "[1.0] [2.0]\n"


def test_threads_that_call_at_once(tmp_path: Path) -> None:
    """The first call of the process included, which defines the operators, and the first of each kind."""
    source = """
import random, time
from msdeform.kernels import registry
backend = registry.BACKENDS["cpu"]

def load():
    time.sleep(0.5)  # all have asked by then
    return backend.load()

registry.BACKENDS["cpu"] = backend._replace(load=load)
kinds = [dict(D=D, coordinates=c, dtype=t) for D, c, t in (
    (8, None, torch.float32), (8, 2, torch.float32), (5, 4, torch.bfloat16), (3, None, torch.float64))]
errors = []
begin = threading.Barrier(4)

def call(number):
    order = random.Random(number)
    begin.wait()
    try:
        for seed in range(6):
            right(**(kinds[0] if seed == 0 else order.choice(kinds)), seed=seed)
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
print("done")
"""
    assert python(tmp_path, COMMON + source) == "done\n"


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="no interval timer on this system")
def test_interrupted_calls_leave_later_ones_right(tmp_path: Path) -> None:
    """Interrupted anywhere: while other threads run, while it waits for them, while it compiles, and before it ends."""
    source = """
import random, time
case = Case(B=1, Q=3000, H=1, D=8, P=2, sizes=((60, 50),), coordinates=2)
from msdeform.kernels.diagnostics.checks import evaluate, make_inputs
tensors, grad_output = make_inputs(case), torch.ones(1, 3000, 8)
expected = evaluate(case, tensors, grad_output, "cpu")

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
draw, interrupted = random.Random(0), 0
for turn in range(80):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0005, 0.02))
        while True:
            evaluate(case, tensors, grad_output, "cpu")
            if turn % 10 == 0:
                right(D=1 + turn // 10)
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted == 80
found = evaluate(case, tensors, grad_output, "cpu")
assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
right(seed=1)
long = Case(B=1, Q=60000, H=4, D=32, P=4, sizes=((60, 50),), coordinates=2)
tensors, grad_output = make_inputs(long), torch.ones(1, 60000, 128)
evaluate(long, tensors, grad_output, "cpu")
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while True:
        evaluate(long, tensors, grad_output, "cpu")
except KeyboardInterrupt:
    print("done")  # and the interpreter ends while threads may still be at it
"""
    assert python(tmp_path, COMMON + source) == "done\n"


def test_the_threads_end_before_the_interpreter_does(tmp_path: Path) -> None:
    """One that frees a tensor while the interpreter goes away aborts the process; calls at exit do without them."""
    source = """
import atexit, threading

def last():  # registered first, so called after all that the package registers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("msdeform")]
    right(seed=1)
    print("done")

atexit.register(last)
COMMON
right()
assert sum(thread.name.startswith("msdeform") for thread in threading.enumerate()) == 2
"""
    assert python(tmp_path, source.replace("COMMON", COMMON)) == "done\n"


def test_nothing_is_written_and_no_warning_given(tmp_path: Path) -> None:
    """The installation, the home directory and the working directory may all be read-only."""
    home = tmp_path / "home"
    home.mkdir()
    source = """
import warnings
warnings.simplefilter("error")
os.chdir(os.environ["HOME"])
written = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            written.append((event, path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "subprocess.Popen"):
        written.append((event, *arguments))

sys.addaudithook(watch)
right()
right(coordinates=None, dtype=torch.bfloat16)
assert not written, written
open("here", "w").close()
assert len(written) == 1, "the hook sees nothing"
os.remove("here")
print("done")
"""
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(home))
    assert python(tmp_path, COMMON + source, **places) == "done\n"
    assert not list(home.iterdir()), "nor by code that Python's audit does not see"


def test_compiled_before_any_call(tmp_path: Path) -> None:
    """Whether the backend is available, and its operators, are found out while torch.compile traces."""
    source = """
import torch
from msdeform.kernels.api import ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
case = Case(B=1, Q=9, H=1, D=8, coordinates=None)
tensors = make_inputs(case)
call = lambda value, *rest: ms_deform_attn(value, case.sizes, *rest)
compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(*tensors), call(*tensors))
assert "cpu" in torch.ops.msdeform.cpu_forward.default.name()
print("done")
"""
    assert python(tmp_path, source, CUDA_VISIBLE_DEVICES="") == "done\n"
