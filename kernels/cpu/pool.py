"""Threads that run compiled functions side by side.

Python threads, which give up the interpreter's lock while compiled code runs. They are started when first wanted and
wait for the next call. A forked child has none of its parent's threads and starts its own; calls from several Python
threads at once share them, and none waits for another's work.
"""

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
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._started = 0
        self._starting = threading.Lock()

    def run(self, function: Callable[[int], None], address: int, threads: int, memory: Any) -> None:
        """``function(address)`` in ``threads`` threads at once, of which this is one.

        Args:
            function: compiled; it shares out the work itself, and may be called after all of it is done.
            memory: owns what lies at the address, and all that is read and written from there.
        """
        if threads > self._started + 1:
            self._start(threads - 1)
        tasks = [_Task(function, address, memory) for _ in range(threads - 1)]
        for task in tasks:
            self._tasks.put(task)
        function(address)
        for task in tasks:
            task.wait()

    def _start(self, threads: int) -> None:
        with self._starting:
            while self._started < threads:
                name = f"msdeform-cpu-{self._started}"
                threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True).start()
                self._started += 1


def _work(tasks: "SimpleQueue[_Task]") -> None:
    while True:
        tasks.get().run()


POOL = Pool()
