"""A detector of transformers as one of ours: the same images in, the same dictionary out, ``predict`` and explanations.

detector = TransformersDetector.from_pretrained("PekingU/rtdetr_v2_r18vd")
detector.predict("street.jpg")
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...common.files import BEST, checkpoints_in, read_json, told_of
from ...common.text import counted, printable, suggest
from ...models.catalog import TRANSFORMERS
from ...models.inference.detections import Detections
from ...models.inference.image_size import Size
from ...models.inference.post_processing import post_process
from ...models.inference.predictor import Predictor
from ...models.layers.batch import Images, as_batch
from ...models.losses.targets import Target
from ...models.weights.formats import CONFIG_FILE, Source, check_fit, read_source
from ...models.weights.huggingface_config import MODEL_TYPES
from ..accelerate import accelerate
from ..places import find_places
from .deimv2 import FIELD, follow_authors
from .image_settings import ImageSettings
from .predictions import every_layer, layer_predictions
from .training import TransformersConfig, labels_of

PROCESSOR_FILE = "preprocessor_config.json"


class TransformersDetector(Predictor):
    """Wraps a detector of transformers with deformable attention, whose weights and classes it keeps.

    Deformable DETR, RT-DETR, RT-DETRv2, D-FINE, DEIMv2, LW-DETR, RF-DETR and PP-DocLayout v2 and v3 are tested.
    """

    leaves_unused = True
    """May losses leave parameters without a gradient? Those of denoising, for images without boxes."""

    def __init__(self, model: nn.Module, settings: ImageSettings, *, attn_backend: str = "auto") -> None:
        """Puts our operator into `model`, in place.

        Args:
            model: a ``...ForObjectDetection`` of transformers, which stays a module of its own.
            settings: to what size and range its images are brought.
            attn_backend: the operator's backend.

        Raises:
            TypeError: `settings` are something else, as an image processor.
            ValueError: `model` has no deformable attention, needs text, or its boxes are no boxes; or as
                `deimv2.follow_authors`.
            BackendUnavailable: as `accelerate`.
        """
        super().__init__()
        config: Any = model.config
        _check_detector(model, config)
        if not isinstance(settings, ImageSettings):
            raise TypeError(
                f"settings: expected ImageSettings, as ImageSettings.of(processor) gives, got {type(settings).__name__}"
            )
        self.model, self.settings = model, settings
        self.focal = bool(getattr(config, "use_focal_loss", True))
        names = config.id2label
        self.categories = [str(names[label]) for label in range(len(names))]
        self.input_size: Size | None = settings.size
        # of RT-DETR, whose name for this head its kin share
        self._kin = hasattr(model.get_submodule("model"), "enc_score_head")
        self.two_stage = self._kin or (config.model_type == "deformable_detr" and config.two_stage)
        """Does the model say of which pixels it makes its queries?"""
        follow_authors(model)
        self.replaced = accelerate(model, attn_backend)
        """What our operator stands in the place of."""

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, *, attn_backend: str = "auto") -> "TransformersDetector":
        """A detector out of a folder that transformers wrote, or OWNER/NAME of the Hub, in evaluation mode.

        Checkpoints and folders of runs of ``msdeform train`` are read, too.

        Raises:
            RuntimeError: transformers is not installed.
            FileNotFoundError: neither a folder nor OWNER/NAME.
            ConnectionError: the Hub gave no such repository.
            ValueError: it is no detector, has no deformable attention, needs text, or does not say how to bring
                images to its size.
        """
        path = Path(name_or_folder)
        if path.is_file() or checkpoints_in(path) or (path / BEST).is_file():
            return cls.from_source(read_source(path), attn_backend=attn_backend)
        _check_installed(name_or_folder)
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        config = _read(name_or_folder, _config_of)
        _check_kind(name_or_folder, config)
        _check_runs_no_code(name_or_folder, config)
        _check_shards(Path(name_or_folder))
        with _no_progress_bar():
            model = _read(name_or_folder, AutoModelForObjectDetection.from_pretrained)
        try:
            processor = _read(name_or_folder, AutoImageProcessor.from_pretrained)
        except (OSError, ValueError) as error:
            there = (Path(name_or_folder) / PROCESSOR_FILE).exists()
            raise ValueError(
                f"{name_or_folder} has no {PROCESSOR_FILE}{' that can be read' * there}, which says to what size and "
                "range images are brought: save the model's image processor there" + f" ({_first_line(error)})" * there
            ) from error
        return cls(model.eval(), ImageSettings.of(processor), attn_backend=attn_backend).eval()

    @classmethod
    def from_source(cls, source: Source, *, attn_backend: str = "auto") -> "TransformersDetector":
        """The detector of a checkpoint of ``msdeform train``, with its weights and classes, in evaluation mode.

        Raises as `from_config`, and ValueError for weights of another detector.
        """
        if source.config is None or source.config.get("family") != TRANSFORMERS:
            raise ValueError(f"{source.path} is no detector of transformers; msdeform.load_model loads it")
        with told_of(source.path, "checkpoint"):
            described = TransformersConfig.from_dict(source.config)
        model = cls.from_config(described, source.input_size, attn_backend)
        check_fit(model.state_dict(), source.weights, source.path)
        model.load_state_dict(source.weights)
        if source.categories is not None:
            model.categories = list(source.categories)
        model.thresholds = source.thresholds
        return model.eval()

    @classmethod
    def from_config(
        cls,
        described: TransformersConfig,
        size: Size | None,
        attn_backend: str = "auto",
        *,
        num_classes: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> "TransformersDetector":
        """The randomly initialised detector that `require_config` described, for images of `size`.

        Args:
            described: what to rebuild.
            size: to what images are brought.
            attn_backend: the operator's backend.
            num_classes: another number of classes.
            overrides: other values of fields of its configuration.

        Raises RuntimeError without transformers, ValueError for fields that it does not have, or values that
        transformers refuses.
        """
        kind = str(described.config.get("model_type"))
        _check_installed(f"the model, a {kind},")
        from transformers import CONFIG_MAPPING, AutoModelForObjectDetection

        if kind not in CONFIG_MAPPING:
            raise ValueError(f"model_type: the installed transformers has no {kind!r}")
        try:
            config = CONFIG_MAPPING[kind].from_dict(described.config)
        except Exception as error:  # its own kinds
            raise ValueError(f"{kind} has no such configuration: {_first_line(error)}") from error
        _check_runs_no_code(f"the configuration of {kind}", config)
        for name, value in (overrides or {}).items():
            if not hasattr(config, name) and name != FIELD:
                known = sorted(config.to_dict())
                raise ValueError(
                    suggest(f"override: {name} is not a field of the configuration of {kind}", name, known)
                )
            setattr(config, name, value)
        if num_classes is not None and num_classes != config.num_labels:
            config.num_labels = num_classes
        config.use_pretrained_backbone = False  # or timm would download it, only to be written over
        try:
            model = AutoModelForObjectDetection.from_config(config)
        except Exception as error:  # its own kinds
            raise ValueError(f"{kind} cannot be made by transformers: {_first_line(error)}") from error
        settings = ImageSettings(size, described.mean, described.std, described.processor)
        return cls(model, settings, attn_backend=attn_backend)

    def require_config(self) -> TransformersConfig:
        """What `from_config` rebuilds this detector from."""
        config: Any = self.model.config
        plain = json.loads(config.to_json_string())
        images = self.settings
        return TransformersConfig(plain, images.mean, images.std, images.processor, config.num_labels)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> dict[str, Any]:
        """Of images as our detectors take them, normalised with ImageNet's colours.

        With `targets`, of our losses' form, returns what `TransformersCriterion` takes. Without, returns the last
        layer's ``pred_logits`` (B, Q, classes) and ``pred_boxes`` (B, Q, 4), cxcywh, normalised, and of the layers
        before them the same in ``aux_outputs``, where they predict something. Where queries are made of pixels of the
        maps, ``proposals`` (B, Q) says of which, of all levels; of LW-DETR and RF-DETR it is not known.
        """
        batch, mask = as_batch(images, self.dtype)
        self._check_size(*batch.shape[-2:])
        inputs = {"pixel_values": self.settings.convert(batch, mask), "pixel_mask": (~mask).long()}
        if targets is not None:
            return {"for_losses": self._for_losses(inputs, labels_of(targets, self.dtype))}
        with every_layer(self.model):
            outputs = self.model(**inputs)
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in layer_predictions(self.model, outputs)]
        found: dict[str, Any] = {**layers[-1], "aux_outputs": layers[:-1]}
        if self.two_stage:
            found["proposals"] = self.choose_proposals(outputs.enc_outputs_class)
        return found

    def train(self, mode: bool = True) -> Self:
        """As of any module, but norms whose statistics were folded into other weights stay constants.

        Such weights come out of exports. Statistics of the batch would change what everything behind them was trained
        on.
        """
        super().train(mode)
        for each in self.modules():
            if isinstance(each, nn.BatchNorm2d) and mode and _is_folded(each):
                each.eval()
        return self

    def _for_losses(self, inputs: dict[str, Tensor], labels: list[dict[str, Tensor]]) -> Any:
        """What the model calls its loss function with, for the losses to be computed later, in another precision."""
        model: Any = self.model
        kept: list[Any] = []

        def keep(*arguments: Any, **named: Any) -> tuple[None, dict[str, Tensor], None]:
            kept.append((arguments, named))
            return None, {}, None

        model.loss_function = keep
        try:
            model(**inputs, labels=labels)
        finally:
            del model._loss_function
        return kept[0]

    def _check_size(self, height: int, width: int) -> None:
        """Raises ValueError for images of which a hybrid encoder's maps do not fit onto each other."""
        step = max(getattr(self.model.config, "feat_strides", None) or [1])
        if height % step or width % step:
            raise ValueError(f"size: {self.kind} takes sides that are multiples of {step} pixels, got {height}x{width}")

    def choose_proposals(self, logits: Tensor) -> Tensor:
        """The pixels (B, Q) that the model makes its queries of, by the logits (B, S, classes) of all of them."""
        config: Any = self.model.config
        if self._kin:
            return logits.max(-1).values.topk(config.num_queries, dim=1).indices
        return logits[..., 0].topk(config.two_stage_num_proposals, dim=1).indices

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        """Detections of each image in pixels: see `post_processing.post_process`."""
        return post_process(outputs, target_sizes, top_k, focal=self.focal)

    @property
    def transformer(self) -> nn.Module:
        """What has the encoder and the decoder."""
        return self.model.get_submodule("model")

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        name = "conv_encoder" if hasattr(self.transformer, "conv_encoder") else "backbone"
        return self.transformer.get_submodule(name)

    @property
    def kind(self) -> str:
        """The class of transformers' model."""
        return type(self.model).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @contextmanager
    def levels_from(self, begin: Callable[[Tensor], Tensor]) -> Iterator[list[tuple[int, int]]]:
        """They are what goes into an encoder of deformable attention or, without one, what the decoder looks at."""
        shapes: list[tuple[int, int]] = []
        in_encoder = any(".encoder." in f".{place.path}." for place in find_places(self.model))
        name, maps = ("encoder", "inputs_embeds") if in_encoder else ("decoder", "encoder_hidden_states")

        def hook(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            shapes[:] = [(int(h), int(w)) for h, w in given["spatial_shapes_list"]]
            return args, given | {maps: begin(given[maps])}

        handle = self.model.get_submodule(f"model.{name}").register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield shapes
        finally:
            handle.remove()


def _is_folded(norm: nn.BatchNorm2d) -> bool:
    """Are its statistics exactly those that leave values as they are? A fresh norm's variance is 1, without eps."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return bool((mean == 0).all()) and bool(((variance + norm.eps - 1).abs() < 0.1 * norm.eps).all())


def is_of_transformers(path: Path) -> bool:
    """Is it a folder of transformers with another architecture than those that `read_source` reads?"""
    file = path / CONFIG_FILE
    if not file.is_file():
        return False
    try:
        config = read_json(file)
    except ValueError:  # told by what reads it
        return False
    return isinstance(config, dict) and config.get("model_type", "detr") not in MODEL_TYPES and "format" not in config


def _check_installed(what: str | Path) -> None:
    if find_spec("transformers") is None:
        raise RuntimeError(f"{what} needs the package transformers, which is not installed")


def _check_detector(model: nn.Module, config: Any) -> None:
    """Raises ValueError where it cannot be one of our detectors."""
    kind = type(model).__name__
    if hasattr(config, "text_config"):
        raise ValueError(f"{kind} needs text beside the image, which is not supported")
    if not any(place.problem is None for place in find_places(model)):
        raise ValueError(
            f"{kind} has no deformable attention ({counted(sum(1 for _ in model.modules()), 'module')}); expected one "
            "such as RT-DETR, D-FINE, LW-DETR or Deformable DETR"
        )
    if config.model_type == "pp_doclayout_v4":
        raise ValueError(f"{kind} detects corners, which is not supported; expected boxes")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows one of its own, which no option of ours would switch off."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config_of(name_or_folder: str | Path, **kept: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name_or_folder, **kept)


def _check_runs_no_code(where: str | Path, config: Any) -> None:
    """Raises ValueError for a configuration that has transformers fetch kernels, or packages decode the weights."""
    waiting = [config]
    while waiting:
        one = waiting.pop()
        waiting += [inner for inner in vars(one).values() if hasattr(inner, "model_type")]
        for name in ("_attn_implementation", "_experts_implementation"):
            if "/" in str(getattr(one, name, None)):
                raise ValueError(
                    f"{where} names code to be fetched and run, {getattr(one, name)!r:.100}; that is not supported"
                )
        if getattr(one, "quantization_config", None) is not None:
            raise ValueError(f"{where} is of quantised weights, which other packages decode; that is not supported")


def _check_shards(folder: Path) -> None:
    """Raises ValueError for an index of weights that names files outside of its folder."""
    for index in sorted(folder.glob("*.index.json")):
        with told_of(index, "index"):
            for name in read_json(index)["weight_map"].values():
                if Path(name).name != name:
                    raise ValueError(f"{index}: expected files beside it, got {name!r:.100}")


def _check_kind(name_or_folder: str | Path, config: Any) -> None:
    """Raises ValueError for a model that is no detector, before its weights are loaded."""
    from transformers import MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING

    if type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
        raise ValueError(f"{name_or_folder} is {config.model_type}, which needs text; that is not supported")
    if type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ValueError(f"{name_or_folder} is {config.model_type}; expected a detector with deformable attention")


def _read(name_or_folder: str | Path, read: Callable[..., Any]) -> Any:
    """What transformers reads there, without running code that lies there; its errors in one sentence."""
    path = Path(name_or_folder)
    if not path.exists() and (path.is_absolute() or str(name_or_folder).count("/") != 1):
        raise FileNotFoundError(f"{name_or_folder}: expected a folder of transformers or OWNER/NAME on its Hub")
    try:
        return read(name_or_folder, trust_remote_code=False)  # when not given, it asks at the terminal
    except Exception as error:  # its own kinds, the HTTP library's, safetensors'
        if path.exists():
            raise ValueError(f"{name_or_folder} cannot be read by transformers: {_first_line(error)}") from error
        raise ConnectionError(
            f"{name_or_folder} is no local folder, and could not be had from the Hugging Face Hub "
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().split("\n")[0]) or type(error).__name__
