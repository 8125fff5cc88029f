"""Bad input: one sentence that names the argument, what was expected and what came."""

from typing import Any

import pytest
import torch

import msdeform
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from msdeform.kernels.registry import BackendUnavailable

PLAIN = Case(B=2, Q=3, H=2, D=4, P=2, sizes=((4, 5), (2, 3)), coordinates=None)
FUSED = Case(B=2, Q=3, H=2, D=4, P=2, sizes=((4, 5), (2, 3)), coordinates=4)


def call(case: Case, **changes: Any) -> torch.Tensor:
    tensors = dict(zip(case.names, make_inputs(case), strict=True)) | {"spatial_shapes": case.sizes}
    arguments: dict[str, Any] = tensors | {k: v(tensors) if callable(v) else v for k, v in changes.items()}
    function = msdeform.ms_deform_attn if case.coordinates is None else msdeform.fused_ms_deform_attn
    return function(**arguments)


BAD: list[tuple[Case, dict[str, Any], type[Exception], str]] = [
    (PLAIN, {"value": lambda t: t["value"][0]}, ValueError, r"value: expected \(B, S, H, D\), got \(26, 2, 4\)"),
    (
        PLAIN,
        {"sampling_locations": lambda t: t["sampling_locations"][:, :, :, :1]},
        ValueError,
        r"sampling_locations: expected \(B=2, Q=any, H=2, L=2, P=any, 2\), got \(2, 3, 2, 1, 2, 2\): L differs",
    ),
    (
        PLAIN,
        {"sampling_locations": lambda t: t["sampling_locations"][..., :1]},
        ValueError,
        r"sampling_locations: .* the last dimension differs",
    ),
    (
        PLAIN,
        {"attention_weights": lambda t: t["attention_weights"][:1, ..., :1]},
        ValueError,
        r"attention_weights: expected \(B=2, Q=3, H=2, L=2, P=2\), got \(1, 3, 2, 2, 1\): B and P differ",
    ),
    (PLAIN, {"attention_weights": [1.0]}, TypeError, "attention_weights: expected a tensor, got list"),
    (PLAIN, {"value": lambda t: t["value"].long()}, TypeError, "value: expected float64, float32, .* got torch.int64"),
    (
        PLAIN,
        {"attention_weights": lambda t: t["attention_weights"].to("meta")},
        ValueError,
        "attention_weights: expected the device of value, cpu, got meta",
    ),
    (PLAIN, {"spatial_shapes": ((4, 5), (2, 2))}, ValueError, r"spatial_shapes: .* sum to S=26 of value, .* sum 24"),
    (PLAIN, {"spatial_shapes": torch.tensor([[4, 5], [2, 2]])}, ValueError, r"spatial_shapes: .* sum to S=26"),
    (PLAIN, {"spatial_shapes": ((4, 5, 1), (2, 3, 1))}, ValueError, r"spatial_shapes: expected one pair \(h, w\)"),
    (PLAIN, {"spatial_shapes": ()}, ValueError, "spatial_shapes: expected one pair"),
    (PLAIN, {"spatial_shapes": 7}, TypeError, "spatial_shapes: expected pairs"),
    (PLAIN, {"spatial_shapes": ((4.0, 5.0), (2, 3))}, TypeError, "spatial_shapes: expected integer heights"),
    (PLAIN, {"spatial_shapes": ((-4, -5), (2, 3))}, ValueError, "spatial_shapes: .* at least 1"),
    (PLAIN, {"spatial_shapes": torch.zeros(2, 3).long()}, ValueError, r"spatial_shapes: expected \(L, 2\)"),
    (PLAIN, {"spatial_shapes": torch.ones(2, 2)}, TypeError, "spatial_shapes: expected an int64 or int32 tensor"),
    (PLAIN, {"level_start_index": torch.tensor([0, 19])}, ValueError, r"level_start_index: expected \[0, 20\]"),
    (
        PLAIN,
        {"sampling_locations": lambda t: t["sampling_locations"][:, :, :, :, :0]},
        ValueError,
        "at least one point per level",
    ),
    (
        FUSED,
        {"reference_points": lambda t: t["reference_points"][..., :3]},
        ValueError,
        r"reference_points: expected 2 \(xy\) or 4 \(cxcywh\) coordinates .* got \(2, 3, 2, 3\)",
    ),
    (
        FUSED,
        {"reference_points": lambda t: t["reference_points"][:, :2]},
        ValueError,
        r"reference_points: expected \(B=2, Q=3, L=2, 4\), got \(2, 2, 2, 4\): Q differs",
    ),
    (
        FUSED,
        {"sampling_offsets": lambda t: t["sampling_offsets"].flatten(4)},
        ValueError,
        r"sampling_offsets: expected \(B, Q, H, L, P, 2\), got .*: 6 dimensions are needed",
    ),
    (FUSED, {"attention_logits": lambda t: t["attention_logits"][:, :, :1]}, ValueError, "attention_logits: .* H dif"),
    (PLAIN, {"value": lambda t: t["value"].to_sparse()}, TypeError, "^value: expected a dense tensor, .*sparse_coo"),
    (PLAIN, {"level_start_index": 7}, ValueError, r"^level_start_index: expected \[0, 20\], .* got 7$"),
    (PLAIN, {"level_start_index": torch.tensor(7)}, ValueError, r"^level_start_index: expected \[0, 20\], .* got 7$"),
    (PLAIN, {"spatial_shapes": [("x" * 3000, 1), (2, 3)]}, TypeError, r"^spatial_shapes: .{1,200}$"),
    (PLAIN, {"backend": "x" * 3000}, ValueError, "^backend: expected one of auto, .{1,200}$"),
    (PLAIN, {"backend": ["cpu"]}, ValueError, r"^backend: expected one of auto, .*, got \['cpu'\]"),
    (
        PLAIN,
        {"backend": ["cpu"], "spatial_shapes": torch.tensor(PLAIN.sizes)},
        ValueError,
        r"^backend: expected one of auto, .*, got \['cpu'\]",
    ),
    (PLAIN, {"backend": "tirton"}, ValueError, "expected one of auto, .*, got 'tirton'; did you mean triton"),
]


@pytest.mark.parametrize(("case", "changes", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_gets_one_sentence(case: Case, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(case, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("D", [257, 1025])
def test_heads_too_wide_for_compiled_kernels_run_on_the_reference(D: int) -> None:
    torch.manual_seed(0)
    shapes, value = ((3, 4), (2, 7)), torch.randn(2, 26, 2, D, dtype=torch.float64)
    locations, weights = torch.rand(2, 3, 2, 2, 2, 2).double(), torch.rand(2, 3, 2, 2, 2).double()
    wide = msdeform.ms_deform_attn(value, shapes, locations, weights)
    narrow = [msdeform.ms_deform_attn(part, shapes, locations, weights) for part in value.split(128, 3)]
    parts = torch.cat([part.unflatten(-1, (2, -1)) for part in narrow], -1).flatten(2)
    assert torch.allclose(wide, parts, rtol=0, atol=1e-12)
    with pytest.raises(BackendUnavailable, match=f"at most 256 channels per head, got D={D}"):
        msdeform.ms_deform_attn(value, shapes, locations, weights, backend="cpu")


def test_a_named_backend_that_cannot_run_says_why_and_never_falls_back() -> None:
    if torch.cuda.is_available():
        pytest.skip("here the cuda backend refuses nothing but CPU tensors")
    with pytest.raises(
        BackendUnavailable, match=r"backend 'cuda' cannot run ms_deform_attn of float32 on cpu, B=2, Q=3"
    ):
        call(PLAIN, backend="cuda")


def test_a_start_index_that_agrees_is_accepted() -> None:
    torch.testing.assert_close(call(PLAIN, level_start_index=torch.tensor([0, 20])), call(PLAIN))
