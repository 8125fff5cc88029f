"""Where a model computes multi-scale deformable attention, and how another operator is put there.

A place is found by what a module is or calls, not by the model's name, so that models nobody here has heard of are
found too. An operator is put on the instance: no class, no module of Python and no other model is touched.
"""

import copy
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .forms import FUNCTIONS, Form, Layer, Operator, unlike

_OURS = f"{__name__.split('.')[0]}."
# what a module of this operator is called, from which one that is not understood is told
_CALLED = re.compile(r"multi_?scale_?deform\w*_?att|ms_?deform_?attn", re.IGNORECASE)


class Rewired:
    """The ``forward`` of a module's class, in which some names of its file mean something else.

    It is a copy of the function, so the class and its other instances keep theirs.

    Args:
        module: whose class has the forward.
        names: what each of these global names is within this copy.
    """

    def __init__(self, module: nn.Module, names: dict[str, Form]) -> None:
        self.module, self.names = module, names
        self.function = _rewired(class_forward(module), names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)

    def on(self, module: nn.Module) -> "Rewired":
        """The same for another module of the class."""
        made = copy.copy(self)
        made.module = module
        return made

    def __getstate__(self) -> dict[str, Any]:
        # a copied function has no name to pickle it by: it is made anew
        return {"module": self.module, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"], state["names"])  # type: ignore[misc]


@dataclass(eq=False)
class Replicate:
    """Stands in the place of the method by which ``nn.DataParallel`` copies a module to another GPU.

    The copy takes over what stands on the module, such as a forward of ours, which has to compute with the copy.
    """

    module: nn.Module

    def __call__(self) -> nn.Module:
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        vars(replica)["forward"] = vars(self.module)["forward"].on(replica)
        return replica


def stand_in(module: nn.Module, forward: Any) -> None:
    """Puts a forward of ours, which holds its module, on a module; None takes it off."""
    if forward is None:
        vars(module).pop("forward", None)
        vars(module).pop("_replicate_for_data_parallel", None)
    else:
        vars(module).update(forward=forward, _replicate_for_data_parallel=Replicate(module))


def class_forward(module: nn.Module) -> Any:
    """The forward of a module's class, whatever stands on the module itself."""
    return type(module).forward


def _rewired(function: Any, names: dict[str, Form]) -> Any:
    """A copy of `function`, or of what its decorators wrap, with other globals."""
    wrapped = getattr(function, "__wrapped__", None)
    closure, globals_ = function.__closure__, function.__globals__
    if wrapped is not None:
        inner = _rewired(wrapped, names)
        closure = tuple(types.CellType(inner) if cell.cell_contents is wrapped else cell for cell in closure or ())
    else:
        # without the module's name: torch.compile would look for the names there
        globals_ = {name: value for name, value in globals_.items() if name != "__name__"} | names
    # a code object of its own: torch.compile keeps what it compiled by it, and for one set of globals
    made = types.FunctionType(function.__code__.replace(), globals_, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update({key: value for key, value in function.__dict__.items() if key != "__wrapped__"})
    return made


@dataclass
class Place:
    """One place where a module computes the operator, or seems to."""

    path: str
    """of the module in the model"""
    module: nn.Module
    spelling: str
    """what the module calls: a layer's or a function's name"""
    problem: str | None = None
    """why it cannot be replaced, or None"""
    attribute: str = "forward"
    """of the module, which holds or will hold what stands in for the original"""
    forms: dict[str, type[Form]] = field(default_factory=dict)
    """of each name that it calls"""

    @property
    def current(self) -> Operator | None:
        """Our operator that is there, or None."""
        return _operator_of(self._held)

    @property
    def _held(self) -> Any:
        held = vars(self.module).get(self.attribute)
        # what a whole fused module falls back on
        return getattr(held, "before", held)

    def put(self, operator: Operator) -> None:
        """Makes the module compute with `operator`, in the place of the original or of another of ours."""
        module, form = self.module, next(iter(self.forms.values()))
        if self.attribute != "forward":
            held = vars(module)[self.attribute]
            original = held.original if isinstance(held, Form) else held
            setattr(module, self.attribute, form(operator, original))
        elif form is Layer:
            module.forward = form(operator)
        else:
            made = Rewired(module, {name: form(operator) for name, form in self.forms.items()})
            held = vars(module).get("forward")
            if held is not None and hasattr(held, "before"):
                held.before = made
            else:
                stand_in(module, made)

    def restore(self) -> None:
        """Puts the original back, to the bit."""
        held = vars(self.module).get(self.attribute)
        if isinstance(held, Form) and held.original is not None:
            setattr(self.module, self.attribute, held.original)
        elif _operator_of(held) is not None:
            stand_in(self.module, None)


def _operator_of(held: Any) -> Operator | None:
    if isinstance(held, Rewired):
        held = next(iter(held.names.values()))
    return held.operator if isinstance(held, Form) else None


def find_places(model: nn.Module) -> list[Place]:
    """Every place in `model`, in the order of its modules; those with a problem too."""
    found: list[Place] = []
    suspects: list[Place] = []
    for path, module in model.named_modules():
        name = type(module).__name__
        if _CALLED.search(name) and type(module).__module__.startswith(_OURS):
            found.append(Place(path, module, name, "computes with our operator already"))
            continue
        here = [*_layers(path, module), *_stored(path, module)] or [*_called(path, module)]
        found += here
        if not here and _CALLED.search(name):
            suspects.append(Place(path, module, name, "an unknown form: nothing that it calls is known"))
    # one whose child or whose own call is known is understood
    paths = [place.path for place in found]
    found += [one for one in suspects if not any(path.startswith(f"{one.path}.") for path in paths)]
    return found


def _layers(path: str, module: nn.Module) -> Iterator[Place]:
    for owner in type(module).__mro__:
        if owner.__name__ in Layer.names and "forward" in vars(owner):
            forward = vars(owner)["forward"]
            if next(module.parameters(recurse=False), None) is None and not list(module.children()):
                problem = _replaced(module, forward) or unlike(Layer, forward)
                yield Place(path, module, owner.__name__, problem, forms={owner.__name__: Layer})
            return


def _stored(path: str, module: nn.Module) -> Iterator[Place]:
    for attribute, held in vars(module).items():
        if attribute == "forward":
            continue
        theirs = held.original if isinstance(held, Form) else held
        name = getattr(theirs, "__name__", None)
        if isinstance(theirs, types.FunctionType) and name in FUNCTIONS:
            form = FUNCTIONS[name]
            yield Place(path, module, name, unlike(form, theirs), attribute, {name: form})


def _called(path: str, module: nn.Module) -> Iterator[Place]:
    """A known function of its file that the module's forward calls."""
    for owner in type(module).__mro__:
        if owner is nn.Module:
            return
        forward = vars(owner).get("forward")
        inner = inspect.unwrap(forward) if callable(forward) else None
        if not isinstance(inner, types.FunctionType):
            continue
        names = [name for name in inner.__code__.co_names if name in FUNCTIONS and name in inner.__globals__]
        if names:
            problems = [unlike(FUNCTIONS[name], inner.__globals__[name]) for name in names]
            problem = _replaced(module, forward) or next(filter(None, problems), None)
            forms = {name: FUNCTIONS[name] for name in names}
            yield Place(path, module, " and ".join(names), problem, forms=forms)
            return


def _replaced(module: nn.Module, forward: Any) -> str | None:
    """Why another forward than this one runs, if it does."""
    held = vars(module).get("forward")
    held = getattr(held, "before", held)
    if held is not None and _operator_of(held) is None:
        return f"its forward was replaced before, by {getattr(held, '__qualname__', type(held).__name__)}"
    owner = next(one for one in type(module).__mro__ if "forward" in vars(one))
    if vars(owner)["forward"] is not forward:
        return f"{owner.__name__} overrides forward"
    return None
