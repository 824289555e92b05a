"""The likelihood of data under a model: by the probability-flow ODE, by bounds, in bits per dimension.

`METRICS` is the table of `diffusion_jax.metrics`, to which this room adds metrics of a model itself.
"""

from diffusion_jax.likelihood.bits import Likelihood, bits_per_dim
from diffusion_jax.likelihood.bounds import continuous_bound, elbo_terms, transition_bits
from diffusion_jax.likelihood.flow import FlowLikelihood, log_likelihood
from diffusion_jax.likelihood.metrics import BitsPerDim, Judged, Perplexity
from diffusion_jax.metrics import METRICS

__all__ = [
    "METRICS",
    "BitsPerDim",
    "FlowLikelihood",
    "Judged",
    "Likelihood",
    "Perplexity",
    "bits_per_dim",
    "continuous_bound",
    "elbo_terms",
    "log_likelihood",
    "transition_bits",
]
