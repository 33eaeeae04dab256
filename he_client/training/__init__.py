"""The PyTorch helper: modules as named tensors, and DP-FedSGD's clipped gradient sum in the memory that there is.

The only package of the client that imports torch.
"""

from he_client.training.gradients import Way, clipped_gradient_sum
from he_client.training.measuring import Measured, measure, measure_work
from he_client.training.modules import Arrays, arrays, difference, load_arrays, tensor_specs
from he_client.training.plans import TrainingPlan, parse_size, plans, propose
from he_client.training.sampling import poisson_sample
from he_client.training.trainer import Trainer

__all__ = [
    "Arrays",
    "Measured",
    "Trainer",
    "TrainingPlan",
    "Way",
    "arrays",
    "clipped_gradient_sum",
    "difference",
    "load_arrays",
    "measure",
    "measure_work",
    "parse_size",
    "plans",
    "poisson_sample",
    "propose",
    "tensor_specs",
]
