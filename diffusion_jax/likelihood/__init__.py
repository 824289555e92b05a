"""How likely data are under a model: by the probability-flow ODE, by bounds, in bits per dimension."""

from diffusion_jax.likelihood.bits import Likelihood, bits_per_dim, dequantise
from diffusion_jax.likelihood.bounds import ChainBound, chain_bound, continuous_bound, elbo_terms, transition_bits
from diffusion_jax.likelihood.flow import FlowLikelihood, log_likelihood

__all__ = [
    "ChainBound",
    "FlowLikelihood",
    "Likelihood",
    "bits_per_dim",
    "chain_bound",
    "continuous_bound",
    "dequantise",
    "elbo_terms",
    "log_likelihood",
    "transition_bits",
]
