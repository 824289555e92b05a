"""The noise levels that a published scheduler visits, and the time that the network gets at each, as numbers.

diffusers' classes space their steps in four ways:

    chain     DDIM, DDPM, PNDM, LCM, TCD: whole steps of the table of betas
    sigma     Euler, Heun, LMS, DPM2: steps that may lie between those of the table, sigma = sqrt(1 - abar) / sqrt(abar)
              interpolated linearly; or spaced in sigma by a rule of Karras et al., and then timed by log sigma
    solver    DPM-Solver, UniPC, DEIS: whole steps with other spacings, and the same rules
    flow      xt = (1 - s) x0 + s noise, s moved towards noise by a shift

All levels are computed on the host in float64.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from diffusion_jax.errors import UserError

RULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """N transitions, from the noisiest level to the cleanest.

    Attributes:
      told: the network's time at the start of each, [N].
      alphas, sigmas: [N + 1].
    """

    told: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray

    def part(self, first: int, end: int) -> "Levels":
        """Transitions `first` to `end` - 1."""
        return Levels(
            told=self.told[first:end], alphas=self.alphas[first : end + 1], sigmas=self.sigmas[first : end + 1]
        )

    @property
    def moving(self) -> int:
        """Number of transitions, without a last one that changes nothing (as diffusers has at the first step)."""
        same = self.alphas[-1] == self.alphas[-2] and self.sigmas[-1] == self.sigmas[-2]
        return len(self.told) - (1 if same and len(self.told) > 1 else 0)


def of_variance_preserving(told: np.ndarray, sigmas: np.ndarray) -> Levels:
    """Levels from sigma / alpha."""
    scale = np.sqrt(1.0 + sigmas**2)
    return Levels(told=told, alphas=1.0 / scale, sigmas=sigmas / scale)


def chain_steps(num: int, fields: Fields) -> np.ndarray:
    """Whole steps in falling order, for the classes that walk the chain."""
    total, spacing = fields["num_train_timesteps"], fields["timestep_spacing"]
    if spacing == "linspace":
        return np.round(np.linspace(0, total - 1, num))[::-1]
    if spacing == "leading":
        return np.round(np.arange(num) * (total // num))[::-1] + fields["steps_offset"]
    return np.round(np.arange(total, 0, -total / num))[:num] - 1


def consistency_steps(num: int, fields: Fields) -> np.ndarray:
    """Whole steps of LCM and TCD: `num` of the `original_inference_steps` that the student was taught."""
    original = fields["original_inference_steps"]
    if num > original:
        raise UserError(f"{num} steps are more than the original_inference_steps={original} of the scheduler")
    taught = (np.arange(1, original + 1) * (fields["num_train_timesteps"] // original) - 1)[::-1]
    return taught[np.floor(np.linspace(0, len(taught), num, endpoint=False)).astype(int)].astype(float)


def sigma_levels(num: int, fields: Fields, table: np.ndarray) -> Levels:
    """Levels of Euler and its relatives; `table` is sigma / alpha by step."""
    total, spacing = fields["num_train_timesteps"], fields["timestep_spacing"]
    if spacing == "linspace":
        told = np.linspace(0, total - 1, num)[::-1]
    elif spacing == "leading":
        told = np.round(np.arange(num) * (total // num))[::-1] + fields["steps_offset"]
    else:
        told = np.round(np.arange(total, 0, -total / num))[:num] - 1
    steps = np.arange(total)
    sigmas = np.interp(told, steps, table)
    ruled = spaced(sigmas, num, fields)
    if ruled is not None:
        sigmas, told = ruled, timed(ruled, table)
    last = table[0] if fields.get("final_sigmas_type") == "sigma_min" else 0.0
    return of_variance_preserving(told, np.append(sigmas, last))


def solver_levels(num: int, fields: Fields, table: np.ndarray) -> Levels:
    """Levels of the DPM-Solver family."""
    total, spacing = fields["num_train_timesteps"], fields["timestep_spacing"]
    if fields.get("use_flow_sigmas"):
        shift = fields["flow_shift"]
        flow = 1.0 - np.linspace(1.0, 1.0 / total, num + 1)
        flow = (shift * flow / (1.0 + (shift - 1.0) * flow))[::-1][:-1]
        last = flow[-1] if fields["final_sigmas_type"] == "sigma_min" else 0.0
        return flow_levels(flow, total, last)
    if spacing == "linspace":
        told = np.round(np.linspace(0, total - 1, num + 1))[::-1][:-1]
    elif spacing == "leading":
        told = np.round(np.arange(num + 1) * (total // (num + 1)))[::-1][:-1] + fields["steps_offset"]
    else:
        told = np.round(np.arange(total, 0, -total / num))[:num] - 1
    ruled = spaced(table[::-1], num, fields)
    sigmas = table[told.astype(int)] if ruled is None else ruled
    if ruled is not None:
        told = np.round(timed(ruled, table))
    last = table[0] if fields["final_sigmas_type"] == "sigma_min" else 0.0
    return of_variance_preserving(told, np.append(sigmas, last))


def flow_levels(sigmas: np.ndarray, total: int, last: float = 0.0) -> Levels:
    """Levels of a flow."""
    sigmas = np.append(sigmas, last)
    return Levels(told=sigmas[:-1] * total, alphas=1.0 - sigmas, sigmas=sigmas)


def flow_sigmas(num: int, fields: Fields, tokens: int, given: np.ndarray | None) -> np.ndarray:
    """s of FlowMatchEuler and FlowMatchHeun.

    Args:
      num: number of steps.
      fields: fields of the scheduler's config.
      tokens: number of the picture's tokens, which a dynamic shift depends on.
      given: the levels before they are shifted; by default from the most to the least noise of training.
    """
    total, shift = fields["num_train_timesteps"], fields["shift"]

    def moved(s: np.ndarray) -> np.ndarray:
        return shift * s / (1.0 + (shift - 1.0) * s)

    dynamic = fields["use_dynamic_shifting"]
    ends = np.array([1.0, 1.0 / total])
    ends = ends if dynamic else moved(ends)
    sigmas = np.linspace(ends[0], ends[1], num) if given is None else np.asarray(given, np.float64)
    if dynamic:
        mu = dynamic_mu(tokens, fields)
        odds = np.exp(mu) if fields["time_shift_type"] == "exponential" else mu
        with np.errstate(divide="ignore"):
            sigmas = odds / (odds + (1.0 / sigmas - 1.0))
    else:
        sigmas = moved(sigmas)
    if fields["shift_terminal"]:
        sigmas = 1.0 - (1.0 - sigmas) * (1.0 - fields["shift_terminal"]) / (1.0 - sigmas[-1])
    ruled = spaced(sigmas, num, fields)
    return sigmas if ruled is None else ruled


def logit_normal_sigmas(num: int, height: int, width: int, mu: float, std: float) -> np.ndarray:
    """Ideogram 4's levels: quantiles of a logit-normal whose mean grows with the size, within log-SNR -15 to 18."""
    mean = mu + 0.5 * np.log(height * width / 512**2)
    with np.errstate(divide="ignore"):
        clean = 1.0 - scipy.special.expit(mean + std * scipy.special.ndtri(np.linspace(0.0, 1.0, num + 1)))
    clean = np.clip(clean, scipy.special.expit(-9.0), scipy.special.expit(7.5))
    return (1.0 - clean)[::-1][:-1]


def dynamic_mu(tokens: int, fields: Fields) -> float:
    """The logarithm of the shift, linear in the number of tokens."""
    few, many = fields["base_image_seq_len"], fields["max_image_seq_len"]
    slope = (fields["max_shift"] - fields["base_shift"]) / (many - few)
    return fields["base_shift"] + slope * (tokens - few)


def spaced(sigmas: np.ndarray, num: int, fields: Fields) -> np.ndarray | None:
    """Levels between the first and the last of `sigmas` by the config's rule; None if it has none."""
    most, least = sigmas[0], sigmas[-1]
    named = [rule for rule in RULES if fields.get(rule)]
    if len(named) > 1:
        raise UserError(f"the scheduler names {' and '.join(named)}: keep one of them")
    if not named:
        return None
    ramp = np.linspace(0, 1, num)
    if named[0] == "use_karras_sigmas":
        return (most ** (1 / 7) + ramp * (least ** (1 / 7) - most ** (1 / 7))) ** 7
    if named[0] == "use_beta_sigmas":
        return least + scipy.stats.beta.ppf(1.0 - ramp, 0.6, 0.6) * (most - least)
    return np.exp(np.log(most) + ramp * (np.log(least) - np.log(most)))


def timed(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Steps of the table, possibly fractional, found by the logarithm of sigma."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(table), np.arange(len(table)))
