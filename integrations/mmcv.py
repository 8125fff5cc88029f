"""mmcv's module, `mmcv.ops.MultiScaleDeformableAttention`, on our operator. mmcv itself is not needed::

    from msdeform.integrations.mmcv import MultiScaleDeformableAttention    # was: from mmcv.ops import ...

Arguments, defaults, parameter names and initial values are those of mmcv 2.2
(``mmcv/ops/multi_scale_deform_attn.py``). :func:`register` puts the module where models of mmdet find theirs.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..kernels.compat import MultiScaleDeformableAttnFunction
from ..models.attention import Shapes
from .drop_in import DropIn, multi_scale_deformable_attn_pytorch
from .substitution import Substitution

__all__ = [
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "multi_scale_deformable_attn_pytorch",
    "register",
]


class MultiScaleDeformableAttention(DropIn):
    """Multi-scale deformable attention as mmcv calls it; see :class:`~msdeform.integrations.drop_in.DropIn`.

    `value_proj_ratio` times `embed_dims` channels are sampled. `im2col_step` has no effect; `norm_cfg` and `init_cfg`
    are kept and have none either, as in mmcv. Channels per head that are no power of two are taken without a warning.

    Raises ValueError if `embed_dims`, or `embed_dims` times `value_proj_ratio`, is not a multiple of `num_heads`, a
    count is below 1, or the backend is not known.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        value_proj_ratio: float = 1.0,
        *,
        attn_backend: str = "auto",
    ) -> None:
        super().__init__(
            ("embed_dims", embed_dims),
            num_heads,
            num_levels,
            num_points,
            im2col_step,
            dropout,
            batch_first,
            ("value_proj_ratio", int(embed_dims * value_proj_ratio)),
            backend=attn_backend,
        )
        self.embed_dims = embed_dims
        self.norm_cfg, self.init_cfg = norm_cfg, init_cfg

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Shapes | Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As `DropIn.forward`; `residual`, the former name of `identity`, is taken with a DeprecationWarning."""
        if "residual" in kwargs:
            if identity is not None:
                raise ValueError("residual: expected identity or residual, its former name, got both")
            warnings.warn("residual: the argument is called identity now", DeprecationWarning, stacklevel=2)
            identity = kwargs.pop("residual")
        return super().forward(
            query,
            key,
            value,
            identity,
            query_pos,
            key_padding_mask,
            reference_points,
            spatial_shapes,
            level_start_index,
            **kwargs,
        )


def register() -> Substitution:
    """Put our module and functions in the place of mmcv's: in the registry of configurations, and in `mmcv.ops`.

    Call it before mmdet or another library that imports names from `mmcv.ops` is imported. Models that are built
    afterwards, from configurations or in code, then hold our module; mmcv's own module, where one exists already,
    computes with our operator. ``register().undo()`` takes everything back.

    Raises ImportError where mmcv or its operators cannot be imported.
    """
    try:
        from mmcv import ops
        from mmcv.ops import multi_scale_deform_attn as theirs
    except ImportError as error:
        raise ImportError(f"register: expected mmcv with its operators to be installed, got {error}") from error
    registry = theirs.MODELS if hasattr(theirs, "MODELS") else theirs.ATTENTION  # of mmcv 2, of mmcv 1
    module = MultiScaleDeformableAttention
    functions = {
        "MultiScaleDeformableAttnFunction": MultiScaleDeformableAttnFunction,
        "multi_scale_deformable_attn_pytorch": multi_scale_deformable_attn_pytorch,
    }
    changes = [(vars(theirs), name, function) for name, function in functions.items()]
    places = (registry.module_dict, vars(theirs), vars(ops))
    return Substitution([*changes, *((place, module.__name__, module) for place in places)])
