"""An image in a padded batch against the image alone: the leaks that `models.batch` names, and no others.

Each leak can be closed in the batch; alone, the model is as it is. With all closed the two agree to 1e-10 in float64,
and with any one left open they don't.
"""

from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch

from msdeform.models.zoo import create_model

# padded to 128 x 128, a multiple of every stride; 75 columns are 3 at stride 32, after which the next level reads one
# of padding
SIZES = ((60, 128), (128, 75))
SMALL = ((30, 64), (64, 37))
FOUR = {"num_feature_levels": 4}
TWO_STAGE = {"with_box_refine": True, "two_stage": True}
DC5 = {"backbone": "resnet50", "dilation": True}
DEMO = {"backbone": "resnet10_tiny", "hidden_dim": 32, "nheads": 2, "enc_layers": 1}

BACKBONE, NORM, STRIDED, CHOICE = "backbone", "norm", "strided", "choice"
CASES = {
    "detr": ("detr_tiny", {}, [BACKBONE]),
    "detr learned": ("detr_tiny", {"position_embedding": "learned"}, [BACKBONE]),
    "detr pre-norm": ("detr_tiny", {"pre_norm": True}, [BACKBONE]),
    "detr dc5": ("detr_tiny", DC5, [BACKBONE]),
    "demo": ("detr_demo", DEMO, [BACKBONE]),
    "single scale": ("deformable_detr_tiny", {"num_feature_levels": 1}, [BACKBONE, NORM]),
    "single scale dc5": ("deformable_detr_tiny", {"num_feature_levels": 1, **DC5}, [BACKBONE, NORM]),
    "three levels": ("deformable_detr_tiny", {"num_feature_levels": 3}, [BACKBONE, NORM]),
    "four levels": ("deformable_detr_tiny", FOUR, [BACKBONE, NORM, STRIDED]),
    "four levels learned": (
        "deformable_detr_tiny",
        {**FOUR, "position_embedding": "learned"},
        [BACKBONE, NORM, STRIDED],
    ),
    "five levels": ("deformable_detr_tiny", {"num_feature_levels": 5}, [BACKBONE, NORM, STRIDED]),
    "refine": ("deformable_detr_tiny", {**FOUR, "with_box_refine": True}, [BACKBONE, NORM, STRIDED]),
    # the padding's score is in the middle: so many queries that it is among the best
    "two-stage": ("deformable_detr_tiny", {**FOUR, **TWO_STAGE, "num_queries": 120}, [BACKBONE, NORM, STRIDED, CHOICE]),
}


def images_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


def build(name, settings):
    """In float64 and evaluation, with everything moved that starts at zero, the backbone's biases included."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **{"dec_layers": 2, **settings}).double().eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if not key.startswith("backbone") or key.endswith("bias"):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layers(outputs):
    return [
        layer[name] for layer in (*outputs.get("aux_outputs", []), outputs) for name in ("pred_logits", "pred_boxes")
    ]


class Comparison:
    """A model's outputs for each image alone, and then for all in one batch with some leaks closed."""

    def __init__(self, case, *sizes):
        name, settings, self.leaks = CASES[case]
        self.model, self.images = build(name, settings), images_of(*sizes)
        demo, deformable = name == "detr_demo", name.startswith("deformable")
        self.body = self.model.backbone if demo else self.model.backbone[0]
        projections = self.model.input_proj if deformable else []
        self.strided = [project[0] for project in projections if project[0].stride == (2, 2)]
        self.norms = [project[1] for project in projections]
        self._alone()

    def _alone(self):
        """Outputs; the backbone's maps; and the sizes of what goes into the modules that may leak."""
        self.own_maps, self.own_sizes = [], defaultdict(list)
        hooks = [self.body.register_forward_hook(lambda _, __, maps: self.own_maps.append(as_list(maps)))]
        for module in (*self.strided, *self.norms):
            hooks.append(
                module.register_forward_pre_hook(lambda m, given: self.own_sizes[m].append(tuple(given[0].shape[2:])))
            )
        self.alone = [layers(self.model([image])) for image in self.images]
        for hook in hooks:
            hook.remove()

    def difference(self, *, closed):
        """The largest between any layer's outputs for an image alone and in the batch."""
        with self._closed(closed):
            together = layers(self.model(self.images))
        return max(
            float((batch[i : i + 1] - one).abs().max())
            for i, ones in enumerate(self.alone)
            for batch, one in zip(together, ones, strict=True)
        )

    @contextmanager
    def _closed(self, leaks):
        hooks = [self.body.register_forward_hook(self._from_own_image)] if BACKBONE in leaks else []
        if NORM in leaks:
            hooks += [norm.register_forward_hook(self._from_own_statistics) for norm in self.norms]
        if STRIDED in leaks:
            hooks += [module.register_forward_pre_hook(self._of_zero_padding) for module in self.strided]
        if CHOICE in leaks:
            best = self.model.transformer._best
            self.model.transformer._best = lambda logits, boxes: best(
                logits.masked_fill(boxes.isinf().any(-1, keepdim=True), -torch.inf), boxes
            )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if CHOICE in leaks:
                del self.model.transformer._best

    def _from_own_image(self, module, arguments, output):
        for level, x in enumerate(as_list(output)):
            for i, maps in enumerate(self.own_maps):
                x[i, :, : maps[level].shape[2], : maps[level].shape[3]] = maps[level]
        return output

    def _from_own_statistics(self, module, arguments, output):
        for i, (h, w) in enumerate(self.own_sizes[module]):
            output[i : i + 1, :, :h, :w] = module.forward(arguments[0][i : i + 1, :, :h, :w])
        return output

    def _of_zero_padding(self, module, arguments):
        clean = torch.zeros_like(arguments[0])
        for i, (h, w) in enumerate(self.own_sizes[module]):
            clean[i, :, :h, :w] = arguments[0][i, :, :h, :w]
        return (clean,)


def as_list(maps):
    return maps if isinstance(maps, list) else [maps]


@pytest.mark.parametrize("case", CASES)
def test_the_leaks_are_those_named(case):
    both = Comparison(case, *(SMALL if "dc5" in case else SIZES))
    assert both.difference(closed=both.leaks) < 1e-10
    for leak in both.leaks:
        assert both.difference(closed=[other for other in both.leaks if other != leak]) > 1e-6, leak


@pytest.mark.parametrize("case", ["detr", "demo", "four levels"])
def test_a_padded_size_between_strides_gains_a_row(case):
    """80 rows are 3 of stride 32, at the pixels 0, 26 and 53: all within the image of 64 rows, which alone has 2."""
    between, multiple = Comparison(case, (64, 128), (80, 128)), Comparison(case, (64, 128), (128, 128))
    assert between.difference(closed=between.leaks) > 1e-6
    assert multiple.difference(closed=multiple.leaks) < 1e-10


def test_the_padding_of_two_stages_counts_as_background():
    """The encoder's losses are over all pixels, padded ones too."""
    both = Comparison("two-stage", *SIZES)
    outputs = both.model(both.images)["enc_outputs"]
    assert outputs["pred_logits"].shape[1] == 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    assert len(both.model([both.images[0]])["enc_outputs"]["pred_logits"][0]) == 8 * 16 + 4 * 8 + 2 * 4 + 1 * 2
    assert (outputs["pred_boxes"][0].reshape(-1, 4)[-1] == 1).all()
