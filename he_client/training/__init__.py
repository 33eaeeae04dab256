"""The PyTorch helper: modules as named tensors, and DP-FedSGD's clipped gradient sum.

The only package of the client that imports torch.
"""

from he_client.training.gradients import clipped_gradient_sum
from he_client.training.modules import Arrays, arrays, difference, load_arrays, tensor_specs
from he_client.training.sampling import poisson_sample

__all__ = [
    "Arrays",
    "arrays",
    "clipped_gradient_sum",
    "difference",
    "load_arrays",
    "poisson_sample",
    "tensor_specs",
]
