"""The calls that existing models make, answered by :func:`~msdeform.ms_deform_attn`.

A model written for the official extension or for mmcv needs one import changed::

    from msdeform.kernels.compat import MSDeformAttnFunction                # was: functions.ms_deform_attn_func
    from msdeform.kernels.compat import MultiScaleDeformableAttnFunction    # was: mmcv.ops.multi_scale_deform_attn

Neither class is an autograd.Function: the operator itself is differentiable, works under ``torch.compile`` and takes
every dtype and device that a backend runs on.
"""

from torch import Tensor

from .api import ms_deform_attn


class MSDeformAttnFunction:
    """Stands in for the official extension's autograd function (Deformable-DETR, ``models/ops/functions``)."""

    @staticmethod
    def apply(  # their order, not ours
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Multi-scale deformable attention, by the backend that the process has set.

        Args:
            value: (B, S, H, D).
            value_spatial_shapes: (L, 2) int tensor of (h, w), or pairs of Python ints.
            value_level_start_index: (L,). The starts follow from the shapes; a contradiction is an error where the
                host can see it.
            sampling_locations: (B, Q, H, L, P, 2), xy normalised to [0, 1].
            attention_weights: (B, Q, H, L, P).
            im2col_step: accepted and ignored: the batch is never cut into pieces, and need not be a multiple of it.

        Returns:
            (B, Q, H*D) in value's dtype.

        Raises:
            TypeError, ValueError, BackendUnavailable: as :func:`~msdeform.ms_deform_attn`.
        """
        return ms_deform_attn(
            value,
            value_spatial_shapes,
            sampling_locations,
            attention_weights,
            level_start_index=value_level_start_index,
        )


class MultiScaleDeformableAttnFunction(MSDeformAttnFunction):
    """Stands in for mmcv's autograd function, which has the same form."""
