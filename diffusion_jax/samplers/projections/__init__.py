"""Projections: sampling with known pixels or a known linear measurement.

projection     what it does                                                             paper
replacement    known values are put back after every step                               2011.13456
repaint        the same, and steps are taken again until both parts agree               2201.09865
dps            the denoiser of the posterior; a measurement with noise                  2209.14687
pigdm          the denoiser of the posterior; with the remaining variance of x0      PiGDM, ICLR 2023
"""

from diffusion_jax.samplers.projections.known import Known, Measurement, Region
from diffusion_jax.samplers.projections.posterior import DPS, PiGDM, Posterior
from diffusion_jax.samplers.projections.projection import (
    PROJECTIONS,
    Projection,
    network_evaluations,
    sample_given,
)
from diffusion_jax.samplers.projections.replacing import RePaint, Replacement

__all__ = [
    "DPS",
    "PROJECTIONS",
    "Known",
    "Measurement",
    "PiGDM",
    "Posterior",
    "Projection",
    "RePaint",
    "Region",
    "Replacement",
    "network_evaluations",
    "sample_given",
]
