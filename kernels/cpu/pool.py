"""Threads that run compiled functions side by side.

Python threads, which give up the interpreter's lock while compiled code runs. They are started when first wanted and
wait for the next call. A forked child has none of its parent's threads and starts its own; calls from several Python
threads at once share them, and none waits for another's work. They end before the interpreter does.
"""

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class _Task:
    """One thread's part of a call. It holds on to all memory that the function reads and writes: a caller that is
    interrupted while it waits leaves nothing behind that a thread still writes to."""

    def __init__(self, function: Callable[[int], None], address: int, memory: Any) -> None:
        self.function, self.address, self.memory = function, address, memory
        self.claimed = threading.Lock()
        self.running = threading.Lock()
        self.running.acquire()

    def run(self) -> None:
        if self.claimed.acquire(blocking=False):
            self.function(self.address)
        self.running.release()

    def wait(self) -> None:
        """Until it is done; a task that no thread has begun is taken back."""
        if not self.claimed.acquire(blocking=False):
            self.running.acquire()


class Pool:
    """As many threads as the widest call has asked for."""

    def __init__(self) -> None:
        self.reset()
        self._ended = False
        atexit.register(self.end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    def end(self) -> None:
        """Let the threads finish what they do and end: one that frees a tensor while the interpreter goes away aborts
        the process. Calls made afterwards, by what else runs at exit, do without them."""
        with self._starting:
            self._ended = True
            for _ in self._threads:
                self._tasks.put(None)
            for thread in self._threads:
                thread.join()

    def run(self, function: Callable[[int], None], address: int, threads: int, memory: Any) -> None:
        """``function(address)`` in ``threads`` threads at once, of which this is one; in fewer where there are no more.

        Args:
            function: compiled; it shares out the work itself, and may be called after all of it is done.
            memory: owns what lies at the address, and all that is read and written from there.
        """
        if threads > len(self._threads) + 1:
            self._start(threads - 1)
        tasks = [_Task(function, address, memory) for _ in range(min(threads - 1, len(self._threads)))]
        for task in tasks:
            self._tasks.put(task)
        function(address)
        for task in tasks:
            task.wait()

    def _start(self, threads: int) -> None:
        with self._starting:
            while len(self._threads) < threads and not self._ended:
                name = f"msdeform-cpu-{len(self._threads)}"
                thread = threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system gives no more, or Python none at exit: those there are do the work
                    return
                self._threads.append(thread)


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    while task := tasks.get():
        task.run()
        del task  # and the memory it holds on to, before the wait for the next


POOL = Pool()
