"""What every detector is: a module with a configuration, post-processing, ``predict`` and the methods of the Hub."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..configs import Config
from ..inference.detections import Detections
from ..inference.post_processing import post_process
from ..inference.predictor import Predictor
from ..weights.formats import Source, check_fit, read_source, save_msdeform
from ..weights.hub import local_or_downloaded
from ..weights.load import settle_config

D = TypeVar("D", bound="Detector")


class Detector(
    Predictor,
    PyTorchModelHubMixin,
    library_name="msdeform",
    pipeline_tag="object-detection",
    tags=["object-detection"],
    paper_url="https://arxiv.org/abs/2010.04159",
):
    """Base of the detectors.

    ``model(images)`` takes a list of normalised images (3, h, w) of any sizes, or the pair of images (B, 3, H, W) and
    padding mask (B, H, W), bool, True where padded, or images (B, 3, H, W) alone; in any float dtype, which becomes
    the model's own.

    A family is a subclass that names its configuration, ``class Detr(Detector, config=DetrConfig)``, and defines
    `from_parts_of` and `body`. ``save_pretrained`` and ``push_to_hub`` write our folder format (`formats`).
    """

    families: ClassVar[dict[type[Config], type["Detector"]]] = {}

    config: Config | None = None
    """Set by `from_config`; None for a detector built from parts by hand, which has no description to store."""

    def __init_subclass__(cls, *, config: type[Config] | None = None, **hub: Any) -> None:
        super().__init_subclass__(**hub)
        if config is not None:
            Detector.families[config] = cls

    @staticmethod
    def from_config(config: Config, *, attn_backend: str = "auto") -> "Detector":
        """The randomly initialised detector of the family of `config`, whose module must have been imported."""
        if type(config) not in Detector.families:
            raise ValueError(f"config: {config.family} is of no module that was imported; models.zoo imports them all")
        model = Detector.families[type(config)].from_parts_of(config, attn_backend)
        model.config = config
        return model

    @classmethod
    def from_parts_of(cls, config: Any, attn_backend: str) -> "Detector":
        """A detector of this family, its parts made as `config`, of its own type, says."""
        raise NotImplementedError(f"{cls.__name__} is of no family")

    @staticmethod
    def from_source(source: Source, *, attn_backend: str = "auto", name: str | None = None) -> "Detector":
        """`zoo.load_model` of weights that are read already; raises ValueError as it does."""
        model = Detector.from_config(settle_config(source, name), attn_backend=attn_backend)
        check_fit(model.state_dict(), source.weights, source.path)
        model.load_state_dict(source.weights)
        if source.categories is not None:
            model.categories = list(source.categories)
        model.input_size = source.input_size
        if source.thresholds is not None and len(source.thresholds) != model.require_config().num_classes:
            raise ValueError(
                f"{source.path}: thresholds: expected a number for each of {model.require_config().num_classes} "
                f"classes, got {len(source.thresholds)}"
            )
        model.thresholds = source.thresholds
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's further arguments would be the detector's parts
        cls: type[D],
        pretrained_model_name_or_path: str | Path,
        *,
        attn_backend: str = "auto",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> D:
        """A detector with its weights and classes out of a folder or a repository on the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a local folder or file, as `zoo.load_model` takes it, or OWNER/NAME.
            attn_backend: the operator's backend, held by every deformable attention.
            revision: branch, tag or commit of the repository; the others are `huggingface_hub.hf_hub_download`'s.

        Raises:
            ConnectionError: nothing there locally, and the Hub gave no such repository.
            FileNotFoundError, ValueError: as `zoo.load_model`; or the detector is not of this class.
        """
        path = local_or_downloaded(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        model = Detector.from_source(read_source(path), attn_backend=attn_backend)
        if not isinstance(model, cls):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {type(model).__name__}, which is no {cls.__name__}; "
                "msdeform.from_pretrained takes any"
            )
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        config = self.require_config().to_dict()
        save_msdeform(save_directory, self.state_dict(), config, self.categories, self.input_size, self.thresholds)

    def require_config(self) -> Config:
        """The configuration. Raises ValueError for a model built from parts by hand, which has none."""
        if self.config is None:
            raise ValueError(
                "model: expected one made by name or from a configuration, got one built from parts by hand"
            )
        return self.config

    @contextmanager
    def every_layer(self) -> Iterator[None]:
        """Whether the losses ask for that or not."""
        before = {name: value for name, value in vars(self).items() if name == "aux_loss"}
        vars(self).update(dict.fromkeys(before, True))
        try:
            yield
        finally:
            vars(self).update(before)

    @contextmanager
    def levels_from(self, begin: Callable[[Tensor], Tensor]) -> Iterator[list[tuple[int, int]]]:
        """They are the projected maps of the backbone."""
        projections = getattr(self, "input_proj", None) or self.get_submodule("conv")
        modules = projections if isinstance(projections, nn.ModuleList) else [projections]
        shapes: list[tuple[int, int]] = []

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            shapes.append((output.shape[2], output.shape[3]))
            return begin(output)

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_hook(hook).remove)
            yield shapes

    @property
    def body(self) -> nn.Module:
        """The ResNet, whose children have torchvision's names."""
        return self.get_submodule("backbone.0.body")

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        """Detections of each image in pixels: see `post_processing.post_process`."""
        return post_process(outputs, target_sizes, top_k, focal=self.focal)


def layer_outputs(logits: list[Tensor], boxes: list[Tensor], *, aux_loss: bool) -> dict[str, Any]:
    """The official dictionary: the last layer's ``pred_logits``, ``pred_boxes``; the others in ``aux_outputs``."""
    layers = [{"pred_logits": l, "pred_boxes": b} for l, b in zip(logits, boxes, strict=True)]
    outputs: dict[str, Any] = dict(layers[-1])
    if aux_loss:
        outputs["aux_outputs"] = layers[:-1]
    return outputs
