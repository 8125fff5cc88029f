"""Our operator in transformers' models: nothing changes but what computes it, and undoing it leaves nothing behind."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import msdeform
from msdeform.integrations.accelerate import restore
from msdeform.integrations.forms import OurOperator, RaggedFunction, pad_points
from msdeform.integrations.places import find_places
from msdeform.kernels.contract import SpatialShapes
from msdeform.kernels.registry import BackendUnavailable
from tests.integrations.architectures import ARCHITECTURES, inputs_of, make, outputs_of

NAMES = sorted(ARCHITECTURES)
# whose whole module is; the others' points have an offset scale of their own
FUSED = {*(name.split(" ")[0] for name in NAMES)} - {"rt_detr_v2", "d_fine", "deimv2"}
ONE_OF_EACH_FORM = ["deformable_detr", "d_fine", "rt_detr_v2", "mask2former"]

LAYER = re.compile(r".*?layers\.0")


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Infinite where names, shapes or what is not finite differ."""
    if a.keys() != b.keys():
        return float("inf")
    differences = [0.0]
    for name, one in a.items():
        other = b[name]
        if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
            return float("inf")
        if one.numel():
            differences.append(float((one - other).nan_to_num(0, 0, 0).abs().max()))
    return max(differences)


def gradients_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a number to which every output adds, by parameter; those without a gradient are left out."""
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for one in outputs_of(model, inputs).values():
        if one.requires_grad:
            finite = one.masked_fill(~one.isfinite(), 0)
            total = total + (finite.flatten() * torch.linspace(-1, 1, one.numel(), dtype=one.dtype)).mean()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# the other two pairs are made of the same parts
@pytest.mark.parametrize(
    ("backend", "fused"),
    [
        ("reference", False),
        ("cpu", True),
        pytest.param("reference", True, marks=pytest.mark.slow),
        pytest.param("cpu", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_of_every_architecture_are_the_same(name: str, backend: str, fused: bool) -> None:
    model, inputs = make(name), inputs_of(name)
    with torch.no_grad():
        before = outputs_of(model, inputs)
    gradients = gradients_of(model, inputs)
    report = msdeform.accelerate(model, backend, fused=fused)
    assert report.replaced > 0
    assert [row.fused for row in report.rows] == [fused and name.split(" ", 1)[0] in FUSED]
    assert report.left == 0, str(report)
    with torch.no_grad():
        assert largest_difference(before, outputs_of(model, inputs)) < 1e-9
    assert largest_difference(gradients, gradients_of(model, inputs)) < 1e-9
    report.undo()
    with torch.no_grad():
        assert largest_difference(before, outputs_of(model, inputs)) == 0
    assert not any("forward" in vars(module) for module in model.modules())


class Zero:
    """An operator that samples nothing."""

    def __call__(self, value: Tensor, _: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        return value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@pytest.mark.parametrize("name", NAMES)
def test_the_test_would_see_another_operator(name: str) -> None:
    model, inputs = make(name), inputs_of(name)
    with torch.no_grad():
        before = outputs_of(model, inputs)
        for place in find_places(model):
            place.put(Zero())
        assert largest_difference(before, outputs_of(model, inputs)) > 1e-3


class Rounded:
    """Our operator, which fails where its result is more than one rounding from the exact one of the same inputs."""

    def __init__(self, calls: list[torch.dtype]) -> None:
        self.calls = calls

    def __call__(self, value: Tensor, shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
        ours = OurOperator("cpu")(value, shapes, locations, weights)
        exact = OurOperator("reference")(value.double(), shapes, locations.double(), weights.double())
        # one rounding to value's dtype, after accumulation in float32; some models are NaN at padding in float16
        finite = exact.isfinite()
        assert torch.equal(finite, ours.isfinite())
        ours_finite, exact = ours.double()[finite], exact[finite]
        bound = torch.finfo(value.dtype).eps / 2 * exact.abs() + 1e-5 * (1 + exact.abs().amax())
        assert ((ours_finite - exact).abs() <= bound).all()
        self.calls.append(ours.dtype)
        return ours


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(one, marks=pytest.mark.slow) for one in (torch.float32, torch.float16))]
)
@pytest.mark.parametrize("name", NAMES)
def test_lower_precision_is_within_one_rounding(name: str, dtype: torch.dtype) -> None:
    model, inputs = make(name, dtype), inputs_of(name, dtype)
    calls: list[torch.dtype] = []
    for place in find_places(model):
        place.put(Rounded(calls))
    with torch.no_grad():
        outputs_of(model, inputs)
    assert calls
    assert set(calls) == {dtype}


@pytest.mark.parametrize("name", ONE_OF_EACH_FORM)
def test_a_compiled_layer_computes_as_eager(name: str) -> None:
    torch.compiler.reset()
    model, inputs = make(name, torch.float32), inputs_of(name, torch.float32)
    msdeform.accelerate(model, "cpu")
    layer = model.get_submodule(LAYER.match(find_places(model)[0].path)[0])  # type: ignore[index]
    with torch.no_grad():
        eager = outputs_of(model, inputs)
        layer.compile(backend="aot_eager")
        assert largest_difference(eager, outputs_of(model, inputs)) < 1e-4
        assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 10
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_as_eager(name: str) -> None:
    torch.compiler.reset()
    model, inputs = make(name, torch.float32), inputs_of(name, torch.float32)
    msdeform.accelerate(model, "cpu")
    with torch.no_grad():
        eager = outputs_of(model, inputs)
        compiled = outputs_of(torch.compile(model, backend="aot_eager"), inputs)
    assert largest_difference(eager, compiled) < 1e-4
    torch.compiler.reset()


@pytest.mark.parametrize("name", ONE_OF_EACH_FORM)
def test_what_was_compiled_before_computes_with_ours_until_undone(name: str) -> None:
    torch.compiler.reset()
    model, place = make(name, torch.float32), find_places(make(name, torch.float32))[0]
    module = model.get_submodule(place.path)
    call: dict[str, Any] = {}
    hook = module.register_forward_pre_hook(
        lambda _, args, named: call.update(args=args, named=named), with_kwargs=True
    )
    with torch.no_grad():
        outputs_of(model, inputs_of(name, torch.float32))
        hook.remove()

        def compiled() -> Tensor:
            found = torch.compile(module, backend="aot_eager")(*call["args"], **call["named"])
            return found[0] if isinstance(found, tuple) else found

        before, place = compiled(), find_places(module)[0]
        place.put(Zero())
        assert not torch.allclose(before, compiled(), atol=1e-3)
        place.put(OurOperator("cpu"))
        assert torch.allclose(before, compiled(), atol=1e-5)
        place.restore()
        assert torch.equal(before, compiled())
    torch.compiler.reset()


@pytest.mark.parametrize("name", ONE_OF_EACH_FORM)
def test_a_model_is_copied_pickled_and_saved_as_before(name: str, tmp_path: Path) -> None:
    model, inputs = make(name, torch.float32), inputs_of(name, torch.float32)
    keys = list(model.state_dict())
    report = msdeform.accelerate(model)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    # before they run: a forward puts hooks on transformers' models that cannot be pickled
    copies = [copy.deepcopy(model)]
    if name != "mask2former":  # whose Swin has such hooks from the beginning
        copies += [pickle.loads(pickle.dumps(model)), saved_whole(model)]
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours = outputs_of(model, inputs)
        report.undo()
        theirs = outputs_of(model, inputs)
        for again in copies:
            assert [type(place.current) for place in find_places(again)] == [OurOperator] * report.replaced
            assert largest_difference(ours, outputs_of(again, inputs)) == 0
            assert not shared(model, again)
            restore(again)
            assert largest_difference(theirs, outputs_of(again, inputs)) == 0
        assert [place.current for place in find_places(loaded)] == [None] * report.replaced
        assert largest_difference(theirs, outputs_of(loaded, inputs)) == 0


def test_modules_of_a_rewired_forward_are_pickled() -> None:
    module = find_places(make("mask2former"))[0].module
    msdeform.accelerate(module)
    again = pickle.loads(pickle.dumps(module))
    assert again.forward.module is again
    assert type(find_places(again)[0].current) is OurOperator


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def shared(one: nn.Module, other: nn.Module) -> bool:
    """Do modules of one hold modules of the other?"""
    mine = set(map(id, one.modules()))
    held = [vars(module).get("forward") for module in other.modules()]
    return any(id(getattr(one, "module", None)) in mine for one in held)


def test_nothing_but_this_model_is_touched() -> None:
    for name in ONE_OF_EACH_FORM:
        other = make(name)
        files = {type(module).__module__ for module in other.modules()}
        before = {file: dict(vars(__import__(file, fromlist=["x"]))) for file in files}
        classes = {type(module): dict(vars(type(module))) for module in other.modules()}
        with msdeform.accelerate(make(name)):
            assert all(place.current is None for place in find_places(other))
            assert all(place.current is None for place in find_places(make(name)))
            for file, names in before.items():
                assert dict(vars(__import__(file, fromlist=["x"]))) == names
            assert all(dict(vars(one)) == names for one, names in classes.items())


def test_a_step_of_training_is_the_same() -> None:
    labels = [
        {"class_labels": torch.tensor([1, 2]), "boxes": torch.rand(2, 4, dtype=torch.float64) / 2} for _ in range(2)
    ]
    steps = []
    for ours in (False, True):
        model = make("deformable_detr").train()
        if ours:
            msdeform.accelerate(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(**inputs_of("deformable_detr"), labels=labels).loss.backward()
        optimizer.step()
        steps.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    assert largest_difference(*steps) < 1e-9


def test_attention_weights_are_returned_when_asked_for() -> None:
    model, inputs = make("deformable_detr"), inputs_of("deformable_detr")
    model.set_attn_implementation("eager")  # transformers' way for its dense attentions
    with torch.no_grad():
        before = model(**inputs, output_attentions=True)
        msdeform.accelerate(model)
        after = model(**inputs, output_attentions=True)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert len(before[name]) == len(after[name]) > 0
        for one, other in zip(before[name], after[name], strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_autocast_is_as_exact_as_before() -> None:
    model, inputs = make("mask2former", torch.float32), inputs_of("mask2former", torch.float32)

    def autocast() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return {name: one.float() for name, one in outputs_of(model, inputs).items()}

    with torch.no_grad():
        exact, theirs = outputs_of(model, inputs), autocast()
        msdeform.accelerate(model, "cpu")
        assert largest_difference(exact, autocast()) < 2 * largest_difference(exact, theirs)


@pytest.mark.parametrize("name", ["deformable_detr", "mask2former"])
def test_what_is_put_at_a_place_is_recorded_although_fused(name: str) -> None:
    model, inputs = make(name), inputs_of(name)
    msdeform.accelerate(model)
    with torch.no_grad():
        before = outputs_of(model, inputs)
        calls: list[torch.dtype] = []
        places = find_places(model)
        for place in places:
            place.put(Rounded(calls))
        assert largest_difference(before, outputs_of(model, inputs)) < 1e-9
        assert len(calls) == len(places)
        for place in places:
            place.put(OurOperator("cpu"))
        assert largest_difference(before, outputs_of(model, inputs)) < 1e-9
        assert len(calls) == len(places)
    restore(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["deformable_detr", "mask2former", "rt_detr_v2"])
def test_a_replica_of_data_parallel_computes_with_its_own_parameters(name: str) -> None:
    model, inputs = make(name), inputs_of(name)
    msdeform.accelerate(model)
    path = re.sub(r"\.attn$", "", find_places(model)[0].path)
    module = model.get_submodule(path)
    replica = module._replicate_for_data_parallel()
    vars(replica).update(
        _modules={name: copy.deepcopy(one) for name, one in module.named_children()}, _forward_hooks={}
    )
    with torch.no_grad():
        for parameter in replica.output_proj.parameters():
            parameter.zero_()
        found: list[Tensor] = []
        module.register_forward_hook(
            lambda _, args, named, __: found.append(replica(*args, **named)[0]), with_kwargs=True
        )
        outputs_of(model, inputs)
    assert found
    assert not any(one.any() for one in found)


@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr", "omdet_turbo"])
def test_gradients_of_the_attention_weights_are_as_before(name: str) -> None:
    model, inputs = make(name), inputs_of(name)
    model.set_attn_implementation("eager")

    def gradients() -> list[Tensor | None]:
        outputs = model(**inputs, output_attentions=True)
        every = outputs.decoder_attentions[1] if name == "omdet_turbo" else outputs.cross_attentions
        weights = [one for one in every if one.requires_grad]
        assert weights
        total = sum(one.sum() for one in outputs.values() if isinstance(one, Tensor) and one.requires_grad)
        return list(torch.autograd.grad(total, weights, allow_unused=True))

    before = gradients()
    assert any(one is not None for one in before)
    msdeform.accelerate(model)
    after = gradients()
    for one, other in zip(before, after, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=0, atol=1e-9)


def test_hooks_on_the_layer_inside_are_called() -> None:
    model, inputs = make("deformable_detr"), inputs_of("deformable_detr")
    msdeform.accelerate(model)
    calls: list[Any] = []
    hook = find_places(model)[0].module.register_forward_hook(lambda *given: calls.append(given))
    with torch.no_grad():
        outputs_of(model, inputs)
        assert len(calls) == 1
        hook.remove()
        outputs_of(model, inputs)
    assert len(calls) == 1


def test_another_default_device_is_no_obstacle() -> None:
    model = make("lw_detr")
    with torch.device("meta"):
        report = msdeform.accelerate(model)
    assert [row.fused for row in report.rows] == [True]


def test_one_image_gets_the_gradient_that_its_function_gave_it() -> None:
    """BatchNorm2d of PyTorch, on a CPU, takes one image's gradient for another tensor where its layout is another."""
    theirs = transformers.models.d_fine.modeling_d_fine.multi_scale_deformable_attention_v2
    norm = nn.BatchNorm2d(6).double()
    found = []
    for function in (theirs, RaggedFunction(OurOperator("cpu"))):
        _, *rest = RaggedFunction.example()
        maps = [torch.linspace(-1, 2, 6 * h * w).double().sin().view(1, 6, h, w).requires_grad_() for h, w in rest[0]]
        value = torch.cat([norm(one).flatten(2).transpose(1, 2) for one in maps], 1).unflatten(2, (2, 3))
        out = function(value, *(one[:1] if isinstance(one, Tensor) else one for one in rest))
        found.append(torch.autograd.grad(out.square().sum(), maps))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_locations_and_attention_weights_are_padded_alike() -> None:
    points = torch.arange(24.0).view(1, 2, 1, 6, 2)
    padded = pad_points(points, [3, 1, 2], -1.0)
    assert padded.shape == (1, 2, 1, 3, 3, 2)
    outside = padded[..., 0] == -1
    assert outside[0, 0, 0].tolist() == [[False, False, False], [False, True, True], [False, False, True]]
    assert torch.equal(padded[~outside], points.reshape(-1, 2))
    # what is outside must not weigh, wherever a location may be moved to
    seen: list[Tensor] = []
    form = RaggedFunction(lambda value, shapes, locations, weights: seen.append(weights) or value)
    form(torch.zeros(1, 6, 1, 1), ((1, 2),) * 3, points, points[..., 0], [3, 1, 2])
    assert torch.equal(seen[0][outside], torch.zeros(6))
    assert torch.equal(seen[0][~outside], points[..., 0].flatten())


def test_every_architecture_of_the_installed_version_is_tested() -> None:
    files = (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
    computes = re.compile(r"^(class MultiScaleDeformableAttention|def multi_scale_deformable_attention)", re.MULTILINE)
    theirs = {file.parent.name for file in files if computes.search(file.read_text(encoding="utf-8"))}
    assert theirs == {name.split(" ")[0] for name in NAMES}


def test_the_report_is_a_table() -> None:
    model = make("deformable_detr")
    report = msdeform.accelerate(model, "reference")
    assert (report.replaced, report.left, report.backend) == (4, 0, "reference")
    assert str(report).splitlines() == [
        "4 places replaced; backend reference",
        "class                          calls                          places  first of them",
        "MultiScaleDeformableAttention  MultiScaleDeformableAttention  4       model.encoder.layers.0.self_attn.attn"
        "  replaced, module fused",
    ]


# modules of other libraries, as they call the operator


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """What mmcv and detrex call on a CPU."""
    return OurOperator("reference")(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_core_pytorch(value: Tensor, value_spatial_shapes: Tensor, locations: Tensor) -> Tensor:
    """Of the official name, but not of its signature."""
    raise AssertionError


def deformable_attention_core_func(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Of a known name and signature, but half of the result."""
    return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights) / 2


class MultiScaleDeformableAttnFunction(torch.autograd.Function):
    """Stands for the function around an extension that was compiled for a GPU."""

    @staticmethod
    def forward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("this extension was built for another machine")


def renamed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator, as mmcv's that takes arguments by their older names."""

    from functools import wraps

    @wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if "old_weights" in kwargs:
            kwargs["weights"] = kwargs.pop("old_weights")
        return forward(self, *args, **kwargs)

    return wrapper


class MsDeformAttnOfMmcv(nn.Module):
    extension = False

    @renamed
    def forward(self, value: Tensor, shapes: Tensor, locations: Tensor, *, weights: Tensor) -> Tensor:
        if self.extension:
            return MultiScaleDeformableAttnFunction.apply(value, shapes, None, locations, weights, 64)
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


class WithAnotherSignature(nn.Module):
    def forward(self, *args: Tensor) -> Tensor:
        return ms_deform_attn_core_pytorch(*args)


class WithAnotherResult(nn.Module):
    def forward(self, *args: Tensor) -> Tensor:
        return deformable_attention_core_func(*args)


class Overridden(MsDeformAttnOfMmcv):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs) + 1


class MSDeformAttnOfNobody(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value


def call() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = torch.tensor([[3, 5], [2, 4]])
    return torch.rand(2, 23, 2, 4), shapes, torch.rand(2, 6, 2, 2, 3, 2), torch.rand(2, 6, 2, 2, 3)


def test_a_decorated_forward_and_a_compiled_extension() -> None:
    value, shapes, locations, weights = call()
    model = nn.ModuleList([MsDeformAttnOfMmcv()])
    before = model[0](value, shapes, locations, old_weights=weights)
    model[0].extension = True
    with pytest.raises(RuntimeError, match="another machine"):
        model[0](value, shapes, locations, old_weights=weights)
    with msdeform.accelerate(model) as report:
        assert report.rows[0].calls == "MultiScaleDeformableAttnFunction and multi_scale_deformable_attn_pytorch"
        for model[0].extension in (True, False):
            assert torch.allclose(model[0](value, shapes, locations, old_weights=weights), before, atol=1e-6)
        assert torch.allclose(copy.deepcopy(model)[0](value, shapes, locations, weights=weights), before, atol=1e-6)
    model[0].extension = True
    with pytest.raises(RuntimeError, match="another machine"):
        model[0](value, shapes, locations, weights=weights)


def test_what_is_not_understood_is_told_and_left() -> None:
    model = nn.ModuleDict(
        {
            "good": MsDeformAttnOfMmcv(),
            "signature": WithAnotherSignature(),
            "result": WithAnotherResult(),
            "overridden": Overridden(),
            "replaced": MsDeformAttnOfMmcv(),
            "unknown": MSDeformAttnOfNobody(),
            "ours": msdeform.MSDeformAttn(16, 2, 4, 2),
        }
    )
    model["replaced"].forward = MSDeformAttnOfNobody().forward
    report = msdeform.accelerate(model)
    assert {row.paths[0]: row.reason for row in report.rows} == {
        "good": None,
        "signature": "an unknown signature: (value, value_spatial_shapes, locations)",
        "result": "it does not compute what our operator does",
        "overridden": "Overridden overrides forward",
        "replaced": "its forward was replaced before, by MSDeformAttnOfNobody.forward",
        "unknown": "an unknown form: nothing that it calls is known",
        "ours": "computes with our operator already",
    }
    assert str(report).startswith("1 place replaced, 6 left; backend auto")
    value, shapes, locations, weights = call()
    plain = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    assert torch.allclose(model["overridden"](value, shapes, locations, weights=weights), plain + 1)


@pytest.mark.parametrize(
    ("model", "backend", "error", "sentence"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2)), "auto", ValueError, "model: expected one that computes multi-scale"),
        (lambda: "a name", "auto", TypeError, "model: expected a torch.nn.Module, got str"),
        (lambda: make("rt_detr"), "tritn", ValueError, "did you mean triton?"),
        (lambda: make("rt_detr"), "cuda", BackendUnavailable, "backend: 'cuda' cannot run this model, which "),
    ],
)
def test_bad_input_is_answered_in_a_sentence(
    model: Callable[[], Any], backend: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)) as told:
        msdeform.accelerate(model(), backend)
    assert "\n" not in str(told.value)


def test_a_model_is_accelerated_once() -> None:
    model = make("d_fine")
    report = msdeform.accelerate(model)
    with pytest.raises(
        ValueError, match=r"DFineForObjectDetection is accelerated already \(2 places\); undo that first"
    ):
        msdeform.accelerate(model, "reference")
    report.undo()
    report.undo()
    assert msdeform.accelerate(model, "reference").replaced == 2
