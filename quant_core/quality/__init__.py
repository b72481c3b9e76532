"""How far a quantized model is from its reference: plain arithmetic on tensors, without a host."""

from .errors import Comparison, cosine, relative_error, snr_db
from .layers import LayerError, weight_errors
from .quality import Quality
from .steps import StepError, Trajectory, step_errors, velocity

__all__ = [
    "Comparison",
    "LayerError",
    "Quality",
    "StepError",
    "Trajectory",
    "cosine",
    "relative_error",
    "snr_db",
    "step_errors",
    "velocity",
    "weight_errors",
]
