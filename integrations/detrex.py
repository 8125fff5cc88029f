"""detrex's module, `detrex.layers.MultiScaleDeformableAttention`, on our operator. detrex itself is not needed::

    from msdeform.integrations.detrex import MultiScaleDeformableAttention    # was: from detrex.layers import ...

Arguments, defaults, parameter names and initial values are those of detrex 0.3
(``detrex/layers/multi_scale_deform_attn.py``).
"""

from ..kernels.compat import MultiScaleDeformableAttnFunction
from .drop_in import DropIn, multi_scale_deformable_attn_pytorch

__all__ = [
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "multi_scale_deformable_attn_pytorch",
]


class MultiScaleDeformableAttention(DropIn):
    """Multi-scale deformable attention as detrex calls it; see :class:`~msdeform.integrations.drop_in.DropIn`.

    `img2col_step` is kept as ``im2col_step``, as detrex does, and has no effect. Channels per head that are no power of
    two are taken without a warning.

    Raises ValueError if `embed_dim` is not a multiple of `num_heads`, a count is below 1, or the backend is not known.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        *,
        attn_backend: str = "auto",
    ) -> None:
        super().__init__(
            ("embed_dim", embed_dim),
            num_heads,
            num_levels,
            num_points,
            img2col_step,
            dropout,
            batch_first,
            backend=attn_backend,
        )
        self.embed_dim = embed_dim
