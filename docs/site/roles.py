"""Makes links of the roles in docstrings, such as ``:func:`~msdeform.use_backend```: help() shows them, pages link."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([\w.]+)`")


class Roles(Extension):
    """A role becomes a link where the name is in the reference, and code elsewhere."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for every object that a page shows."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    name = role[1].split(".")[-1]
    return f"`{role[1] if name == name.lower() and role[1].count('.') > 1 else name}`"
