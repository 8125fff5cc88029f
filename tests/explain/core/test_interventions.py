"""What masks do: to one module, against sums written out; to whole detectors, against weights that do the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msdeform.explain.core.capture import capture
from msdeform.explain.core.interventions import intervene, mean_outputs
from msdeform.explain.core.masks import Mask, parse_mask, parse_masks
from msdeform.explain.core.sites import find_sites, sites
from msdeform.models.attention import MSDeformAttn
from tests.explain.models import DETRS, images, uneven

EXACT = {"rtol": 0, "atol": 1e-12}
SHAPES = ((4, 6), (2, 3))
B, Q, S, C, H, D = 2, 5, 30, 8, 2, 4


def output_projection(module: nn.Module) -> nn.Linear:
    return module.output_proj if isinstance(module, MSDeformAttn) else module.out_proj  # type: ignore[return-value]


def without_columns(model: nn.Module, pattern: str, heads: tuple[int, ...]) -> nn.Module:
    """A copy whose output projections pass nothing of these heads on."""
    other = copy.deepcopy(model)
    for site in find_sites(other, pattern):
        weight = output_projection(site.module).weight.data
        weight.unflatten(1, (site.heads, -1))[:, list(heads)] = 0
    return other


def batch(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    return [image.double() for image in images(*(sizes or ((64, 96), (96, 64))), seed=seed)]


def neighbours(rows: list[int], seed: int = 0) -> list[tuple[int, int]]:
    """Each row and whose weights it has when shuffled: they sit in a circle, in a random order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = [(rows[order[place]], rows[order[place - 1]]) for place in range(len(rows))]
    assert all(row != other for row, other in pairs)
    return pairs


# --- one module, by hand


class Deformable:
    """One module of two levels, and its call; what it should give for any locations and weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = MSDeformAttn(C, 2, H, 3, backend="reference").double()
        for layer in (self.module.sampling_offsets, self.module.attention_weights):
            nn.init.normal_(layer.weight, std=0.5)
        self.model = nn.ModuleDict({"a": self.module})
        self.query, self.inputs = torch.randn(B, Q, C).double(), torch.randn(B, S, C).double()
        self.reference = torch.rand(B, Q, 2, 2).double()
        offsets = self.module.sampling_offsets(self.query).view(B, Q, H, 2, 3, 2)
        self.locations = self.around(offsets)
        self.weights = self.module.attention_weights(self.query).view(B, Q, H, 6).softmax(-1).view(B, Q, H, 2, 3)

    def around(self, offsets: Tensor) -> Tensor:
        """Offsets are in pixels of their level."""
        sizes = torch.tensor([(w, h) for h, w in SHAPES]).double()
        return self.reference[:, :, None, :, None] + offsets / sizes[:, None]

    def __call__(self) -> Tensor:
        return self.module(self.query, self.reference, self.inputs, SHAPES)

    def heads_output(self, locations: Tensor, weights: Tensor) -> Tensor:
        """(B, Q, H, D): weights times the value at each location, bilinear, pixel i's centre at i + 0.5."""
        value = self.module.value_proj(self.inputs).view(B, S, H, D)
        out = torch.zeros(B, Q, H, D).double()
        start = 0
        for level, (h, w) in enumerate(SHAPES):
            grid = value[:, start : start + h * w].view(B, h, w, H, D)
            for b, q, head, p in torch.cartesian_prod(*map(torch.arange, (B, Q, H, 3))).tolist():
                x, y = locations[b, q, head, level, p] * torch.tensor([w, h])
                across = (1 - (x - torch.arange(w) - 0.5).abs()).clamp(min=0)
                down = (1 - (y - torch.arange(h) - 0.5).abs()).clamp(min=0)
                sample = torch.einsum("r,c,rcd->d", down, across, grid[b, :, :, head])
                out[b, q, head] += weights[b, q, head, level, p] * sample
            start += h * w
        return out

    def expected(self, locations: Tensor, weights: Tensor) -> Tensor:
        return self.module.output_proj(self.heads_output(locations, weights).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["zero", "uniform", "shuffled", "frozen"])
@pytest.mark.parametrize("part", ["", ":h1", ":l0:p1-2", ":h0:q1,3", ":h1:l1:p0-1:q2,4"])
def test_deformable_attention_by_hand(mode: str, part: str) -> None:
    case = Deformable()
    assert torch.allclose(case(), case.expected(case.locations, case.weights), **EXACT)
    mask = parse_mask(f"a{part}:{mode}")
    chosen = torch.zeros(Q, H, 2, 3, dtype=torch.bool)
    everything = [range(count) if numbers is None else numbers for numbers, count in
                  ((mask.queries, Q), (mask.heads, H), (mask.levels, 2), (mask.points, 3))]  # fmt: skip
    chosen[torch.meshgrid(*map(torch.tensor, map(list, everything)), indexing="ij")] = True

    locations, weights = case.locations.clone(), case.weights.clone()
    if mode == "zero":
        weights[:, chosen] = 0
    elif mode == "uniform":
        for b in range(B):
            for q in range(Q):
                for head in range(H):
                    here = chosen[q, head]
                    weights[b, q, head][here] = case.weights[b, q, head][here].mean() if here.any() else 0
    elif mode == "shuffled":
        rows = list(everything[0])
        for row, other in neighbours(rows):
            weights[:, row][:, chosen[row]] = case.weights[:, other][:, chosen[row]]
            locations[:, row][:, chosen[row]] = case.locations[:, other][:, chosen[row]]
    else:
        bias = case.module.sampling_offsets.bias.view(H, 2, 3, 2).expand(B, Q, -1, -1, -1, -1)
        locations = torch.where(chosen[..., None], case.around(bias), case.locations)

    with intervene(case.model, mask):
        got = case()
    assert torch.allclose(got, case.expected(locations, weights), **EXACT)
    untouched = ~chosen.any(-1).any(-1).any(-1)
    assert torch.allclose(got[:, untouched], case()[:, untouched], **EXACT)
    assert not torch.allclose(got, case(), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["zero", "uniform", "shuffled"])
@pytest.mark.parametrize("part", ["", ":h1", ":q1,3", ":h0:q2,4"])
def test_dense_attention_by_hand(mode: str, part: str) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(C, H, batch_first=True).double()
    nn.init.normal_(module.in_proj_bias)
    query, key = torch.randn(B, Q, C).double(), torch.randn(B, 7, C).double()
    padded = torch.zeros(B, 7, dtype=torch.bool)
    padded[1, 4:] = True
    q, k, v = (
        (x @ w.T + b).view(B, -1, H, D).transpose(1, 2)
        for x, w, b in zip((query, key, key), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
    )
    plain = (q @ k.mT / D**0.5).masked_fill(padded[:, None, None], -torch.inf).softmax(-1)

    mask = parse_mask(f"a{part}:{mode}")
    weights = plain.clone()
    rows = list(range(Q)) if mask.queries is None else list(mask.queries)
    for head in range(H) if mask.heads is None else mask.heads:
        for row, other in neighbours(rows):
            if mode == "zero":
                weights[:, head, row] = 0
            elif mode == "uniform":
                # padded keys get nothing
                weights[0, head, row], weights[1, head, row, :4] = 1 / 7, 1 / 4
            else:
                weights[:, head, row] = plain[:, head, other]
    expected = module.out_proj((weights @ v).transpose(1, 2).flatten(2))

    with intervene(nn.ModuleDict({"a": module}), mask):
        got, averaged = module(query, key, key, key_padding_mask=padded)
    assert torch.allclose(got, expected, **EXACT)
    assert torch.allclose(averaged, weights.mean(1), **EXACT)


@torch.no_grad()
def test_a_mean_is_taken_over_all_that_ran() -> None:
    case = Deformable()
    first = case.heads_output(case.locations, case.weights)
    with mean_outputs(case.model) as means:
        case()
        case.inputs = case.inputs * 2 + 1
        case()
    # the value is affine in the inputs, and so are the outputs
    second = case.heads_output(case.locations, case.weights)
    mean = torch.cat([first, second]).mean((0, 1))
    assert torch.allclose(means["a"], mean, **EXACT)
    second[:, :, 1] = mean[1]
    with intervene(case.model, Mask("a", heads=(1,), mode="mean"), means=means):
        assert torch.allclose(case(), case.module.output_proj(second.flatten(2)), **EXACT)


# --- whole detectors


@torch.no_grad()
@pytest.mark.parametrize("family", DETRS)
@pytest.mark.parametrize("pattern", ["encoder.*.self", "decoder.*.self", "decoder.*.cross", "*"])
def test_heads_off_are_columns_of_zeros(family: str, pattern: str) -> None:
    model = uneven(family)
    expected = without_columns(model, pattern, (1,))(batch())
    with intervene(model, Mask(pattern, heads=(1,))):
        got = model(batch())
    for name in ("pred_logits", "pred_boxes"):
        assert torch.allclose(got[name], expected[name], **EXACT)
        assert not torch.allclose(got[name], model(batch())[name], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", ["detr", "demo", "deformable"])
def test_without_cross_attention_every_image_is_the_same(family: str) -> None:
    model = uneven(family)
    one, two = batch((64, 96), seed=1), batch((64, 96), seed=2)
    assert not torch.allclose(model(one)["pred_boxes"], model(two)["pred_boxes"], rtol=0, atol=1e-6)
    with intervene(model, Mask("decoder.*.cross")):
        for name in ("pred_logits", "pred_boxes"):
            assert torch.equal(model(one)[name], model(two)[name])


@torch.no_grad()
def test_blocks_nest_and_end() -> None:
    model = uneven("deformable")
    outer, inner = Mask("decoder.*.cross", heads=(0,)), Mask("decoder.*.cross", levels=(0,), mode="uniform")
    answers = {}
    for name, masks in {"none": (), "outer": (outer,), "both": (outer, inner)}.items():
        with intervene(model, *masks):
            answers[name] = model(batch())["pred_boxes"]
    with intervene(model, outer):
        with intervene(model, inner):
            assert torch.equal(model(batch())["pred_boxes"], answers["both"])
        assert torch.equal(model(batch())["pred_boxes"], answers["outer"])
    assert torch.equal(model(batch())["pred_boxes"], answers["none"])
    assert not torch.equal(answers["outer"], answers["both"])


@pytest.mark.parametrize("family", DETRS)
def test_an_exception_leaves_the_model_as_it_was(family: str) -> None:
    model = uneven(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(batch())["pred_logits"]
    fast = torch.backends.mha.get_fastpath_enabled()

    def stopped() -> None:
        with intervene(model, Mask("*")):
            assert model.state_dict().keys() == state.keys()
            assert not torch.equal(model(batch())["pred_logits"], before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert torch.equal(model(batch())["pred_logits"], before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any({"forward", "editor"} & vars(module).keys() for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() is fast


@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_what_is_captured_inside_is_of_the_changed_model(family: str) -> None:
    model = uneven(family)
    site = sites(model)["decoder.0.cross"]
    axis = 2 if site.deformable else 1

    def run() -> tuple[Any, Tensor]:
        with capture(model, "decoder.0.cross", gradients=True) as tape:
            y = model(batch((64, 64)))["pred_logits"][0, 2, 1]
        return tape, y

    with intervene(model, Mask("decoder.*.cross", heads=(0,))):
        tape, y = run()
        with capture(model, "decoder.0.cross") as plain, torch.no_grad():
            model(batch((64, 64)))
        # with head 1's columns grown by a little, as if its weights had
        weight = output_projection(site.module).weight.data.unflatten(1, (site.heads, -1))[:, 1]
        kept, values = weight.clone(), []
        for factor in (1 + 1e-5, 1 - 1e-5):
            weight.copy_(kept * factor)
            values.append(run()[1].item())
        weight.copy_(kept)
    for record in (tape["decoder.0.cross"], plain["decoder.0.cross"]):
        assert not record.weights.select(axis, 0).any()
        assert record.weights.select(axis, 1).any()
    slope = tape.gradients(y)["decoder.0.cross"].weights * tape["decoder.0.cross"].weights
    assert float(slope.select(axis, 1).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("mode", ["zero", "uniform", "shuffled", "frozen"])
@torch.no_grad()
def test_masks_are_the_same_on_the_reference_and_on_a_fused_kernel(mode: str) -> None:
    found = []
    for backend in ("reference", "cpu"):
        model = uneven("deformable", attn_backend=backend)
        with intervene(model, parse_mask(f"decoder.*.cross,encoder.*.self:h0:{mode}")):
            found.append(model(batch((32, 64)))["pred_boxes"])
    assert torch.allclose(*found, **EXACT)


# --- what one writes


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("decoder.*.cross", Mask()),
        ("decoder.*.cross:h0-3", Mask(heads=(0, 1, 2, 3))),
        ("encoder.0.self:h0,2-3:l1:p0:q17", Mask("encoder.0.self", (0, 2, 3), (1,), (0,), (17,))),
        ("decoder.0.*,decoder.1.self:h1:uniform", Mask("decoder.0.*,decoder.1.self", (1,), mode="uniform")),
    ],
)
def test_a_mask_is_read_as_it_is_written(text: str, mask: Mask) -> None:
    assert parse_mask(text) == mask
    assert str(mask) == text
    assert parse_masks(f"{text} + decoder.*.self:h1") == (mask, Mask("decoder.*.self", (1,)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected SITE"),
        (":h0", "expected SITE"),
        ("decoder.*.cross:x1", "'x1' is none of its parts; expected SITE"),
        ("decoder.*.cross:h", "'h' is none of its parts"),
        ("decoder.*.cross:h3-1", "expected a range that rises, got 3-1"),
        ("decoder.*.cross:zeros", "'zeros' is none of its parts"),
        ("decoder.*.cross+", "expected SITE"),
    ],
)
def test_what_is_no_mask_is_told(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_masks(text)


@pytest.mark.parametrize(
    ("family", "text", "sentence"),
    [
        ("deformable", "decoder.*.crss:h0", "'decoder.*.crss' matches nothing; this model has encoder.0.self"),
        ("deformable", "decoder.*.cross:h0,2", "expected a head from 0 to 1 of decoder.0.cross, got 2"),
        ("deformable", "decoder.*.cross:l9", "expected a level from 0 to 1 of decoder.0.cross, got 9"),
        ("deformable", "decoder.*.cross:p9", "expected a point from 0 to"),
        ("detr", "decoder.*.cross:l0", "decoder.0.cross attends to every key, it has no levels"),
        ("detr", "decoder.*.cross:frozen", "it has no locations to freeze"),
        ("deformable", "decoder.*.cross:h0:l0:mean", "name heads alone"),
        ("deformable", "decoder.*.cross:h0:mean", "the mean output of decoder.0.cross is not in means"),
    ],
)
def test_what_a_model_has_not_is_told_before_the_block(family: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("*", r"\*")), intervene(uneven(family), parse_mask(text)):
        raise AssertionError("the block ran")


def test_a_query_out_of_range_is_told_when_it_is_known() -> None:
    model = uneven("deformable")
    unknown = Mask(mode="none")  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"expected a query from 0 to \d+ of decoder.0.cross, got 9999"),
        intervene(model, Mask(queries=(9999,))),
    ):
        model(batch((64, 64)))
    with pytest.raises(ValueError, match="mask mode: expected zero, mean, .*, got 'none'"), intervene(model, unknown):
        pass
    assert not any({"forward", "editor"} & vars(module).keys() for module in model.modules())
