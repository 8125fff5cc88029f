"""Putting something of ours in the place of another library's names, and taking it back."""

from collections.abc import Iterable, MutableMapping
from types import TracebackType
from typing import Any

Change = tuple[MutableMapping[str, Any], str, Any]
"""what holds a name, such as ``sys.modules`` or the ``__dict__`` of a module; the name; its new value"""
_ABSENT = object()


class Substitution:
    """Names that have been given other values; `undo` gives them back what they had.

    As a context manager it is undone at the end of the block. Undoing twice is the same as undoing once. What others
    have taken by these names in the meantime, as ``from module import name`` does, stays with them.

    Args:
        changes: made in this order.
    """

    def __init__(self, changes: Iterable[Change]) -> None:
        self._done: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []
        for holder, name, value in changes:
            self._done.append((holder, name, value, holder.get(name, _ABSENT)))
            holder[name] = value

    def undo(self) -> None:
        """Give every name back what it had.

        Raises:
            RuntimeError: something else has taken the place of a name since; nothing is changed.
        """
        for holder, name, value, _ in self._done:
            if holder.get(name, _ABSENT) is not value:
                raise RuntimeError(
                    f"undo: expected {name!r} as it was put there, got another value: undo later substitutions first"
                )
        while self._done:
            holder, name, _, before = self._done.pop()
            if before is _ABSENT:
                del holder[name]
            else:
                holder[name] = before

    def __enter__(self) -> "Substitution":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()
