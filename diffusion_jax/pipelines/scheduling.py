"""The walk that a scheduler_config.json describes: sampler, noise levels and times of the network.

`weights.read_sampling` translates a config for training, into this project's own grids. This module samples a published
model as its scheduler does, step by step; an unsupported setting is refused by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import levels
from diffusion_jax.pipelines.given import LatePNDM, Mixture
from diffusion_jax.pipelines.levels import Levels
from diffusion_jax.registry import unknown_name
from diffusion_jax.samplers import SAMPLERS, Sampler
from diffusion_jax.samplers.two_stage import ancestral_levels
from diffusion_jax.schedulers import PREDICTIONS, SCHEDULES, Parameterization, TimeGrid
from diffusion_jax.schedulers.parameterization import ScaledT
from diffusion_jax.schedulers.rectified_flow import RectifiedFlow
from diffusion_jax.schedulers.visited import Visited, VisitedTime
from diffusion_jax.weights.diffusers_fields import FIELDS, read_fields
from diffusion_jax.weights.diffusers_kinds import CHAIN, FLOW, KINDS
from diffusion_jax.weights.diffusers_schedulers import read_sampling

NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""Samplers by this project's names, as diffusers' class and the fields in which it differs from its defaults."""
_KEPT = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
         "timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "set_alpha_to_one",
         "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
         "shift_terminal", "time_shift_type")  # fmt: skip
# Supported values; a field that is not listed supports any value.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "clip_sample_range": (1.0,),
    "lambda_min_clipped": (-np.inf, "-inf", "-Infinity", None),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "predict_x0": (True,),
    "disable_corrector": ([], (), None),
    "solver_p": (None,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "skip_prk_steps": (True,),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "time_shift_type": ("exponential", "linear"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """A walk from noise to data.

    Attributes:
      process: the meaning of the network's input and output.
      sampler: the rule of a step.
      grid: the noise levels.
      start: the factor of unit noise at the first level.
      unscaled: whether the scheduler's own state is xt / alpha.
      clip_x0: whether predicted data is cut to [-1, 1].
    """

    process: Parameterization
    sampler: Sampler
    grid: TimeGrid
    start: float = 1.0
    unscaled: bool = False
    clip_x0: bool = False

    @property
    def told(self) -> np.ndarray:
        """The network's time at the start of each transition."""
        return np.asarray(self.process.time_input(self.process.schedule, self.grid.times[:-1]))


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A class of schedulers with all its fields.

    Attributes:
      kind: the class, by diffusers' name.
      fields: fields by name, with the defaults.
      config: the config as it was read.
    """

    kind: str
    fields: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any], *, origin: object = "scheduler_config.json") -> "Scheduler":
        """The scheduler of a config.

        Raises:
          UserError: a class, a field or a value is unknown here.
        """
        kind = config.get("_class_name")
        if not isinstance(kind, str) or kind not in FIELDS:
            raise UserError(f"{origin}: {unknown_name('class of schedulers', str(kind), list(FIELDS))}")
        fields = read_fields(config, kind, origin=origin)
        for name, value in fields.items():
            of_clipping = name == "clip_sample_range" and not fields.get("clip_sample")
            if name in _ONLY and value not in _ONLY[name] and not of_clipping:
                raise UserError(f"{origin} has {name}={value!r}, which is not supported; it can be {_ONLY[name][0]!r}")
        scheduler = cls(kind, fields, dict(config))
        scheduler._check(origin)
        return scheduler

    def replaced(self, name: str) -> "Scheduler":
        """The same model with another sampler, by this project's name or diffusers' class.

        Raises:
          UserError: there is no such sampler, or it is for another kind of process.
        """
        kind, own = NAMES.get(name, (name, {}))
        if kind not in FIELDS:
            raise UserError(unknown_name("sampler", name, list(NAMES)))
        if (FIELDS[kind] is FLOW) != self.is_flow:
            of = "a flow" if self.is_flow else "a chain of betas"
            raise UserError(f"sampler {name} does not fit a model of {of}, as its scheduler {self.kind} says")
        kept = {field: self.fields[field] for field in _KEPT if field in self.fields and field in FIELDS[kind]}
        return Scheduler.read({**kept, **own, "_class_name": kind}, origin=f"sampler {name}")

    @property
    def is_flow(self) -> bool:
        """Whether the process is a flow."""
        return FIELDS[self.kind] is FLOW or bool(self.fields.get("use_flow_sigmas"))

    def _check(self, origin: object) -> None:
        """Raise UserError if the table of betas, the prediction or the solver is unknown here."""
        if FIELDS[self.kind] is FLOW:
            if not self.fields["shift"] > 0:
                raise UserError(f"{origin} has shift={self.fields['shift']!r}; it should be more than 0")
            return
        if self.kind.startswith("DDIM") and self.fields["clip_sample"]:
            raise UserError(f"{origin} has clip_sample=true with {self.kind}, which is not supported; ddpm clips")
        if self.fields.get("use_flow_sigmas"):
            if self.fields["prediction_type"] != "flow_prediction":
                raise UserError(f"{origin} has use_flow_sigmas=true with prediction_type="
                                f"{self.fields['prediction_type']!r}; it should be 'flow_prediction'")  # fmt: skip
        else:
            self._sampling(origin)
        self._solver(origin)

    def _sampling(self, origin: object = "scheduler_config.json") -> Any:
        """The table of betas and the prediction, as training understands them."""
        names = (*CHAIN, "rescale_betas_zero_snr")
        plain = {name: self.fields[name] for name in names if name in self.fields}
        return read_sampling({"_class_name": "DDPMScheduler", "clip_sample": False, **plain}, origin=origin)

    def process(self, time_unit: float = 1.0) -> dict[str, Any]:
        """Schedule, prediction and time input as training understands them, as specs.

        Args:
          time_unit: the network gets times divided by it.

        Raises:
          UserError: the network does not take the chain's steps as they are.
        """
        if self.is_flow:
            scale = self.fields["num_train_timesteps"] / time_unit
            return {
                "schedule": {"name": "rectified_flow"},
                "prediction": {"name": "velocity"},
                "time_input": {"name": "scaled_t", "scale": scale},
            }
        if time_unit != 1.0:
            raise UserError("a network that gets times from 0 to 1 needs a flow, but its scheduler describes a chain")
        found = self._sampling()
        return {"schedule": found.schedule, "prediction": found.prediction, "time_input": found.time_input}

    def _solver(self, origin: object = "scheduler_config.json") -> dict[str, Any]:
        """The spec of the sampler of classes that are samplers here."""

        def refuse(line: str) -> None:
            raise UserError(f"{origin}: {line}")

        if self.kind not in KINDS or self.kind.startswith(("DDIM", "DDPM", "LCM", "TCD", "Euler")):
            return {"name": "euler"}
        return KINDS[self.kind].sampler(self.fields, refuse)

    def table(self) -> np.ndarray:
        """The cumulative products of 1 - beta by step, float64."""
        total = self.fields["num_train_timesteps"]
        schedule = SCHEDULES.build(self._sampling().schedule)
        return np.asarray(schedule.alpha((np.arange(total) + 1) / total)) ** 2

    def walk(
        self,
        num: int,
        *,
        part: Callable[[np.ndarray], tuple[int, int]] = lambda told: (0, len(told)),
        eta: float | None = None,
        tokens: int = 0,
        sigmas: np.ndarray | None = None,
    ) -> Walk:
        """The walk in `num` steps.

        Args:
          num: number of steps of the whole walk.
          part: a function of the network's times in the whole walk, which returns the transitions to run: the first
            one, and the one after the last.
          eta: for DDIM and TCD, the fraction of fresh noise; by default what diffusers takes.
          tokens: number of the picture's tokens, for a shift that depends on it.
          sigmas: for a flow, the levels before the shift.

        Raises:
          UserError: the scheduler does not have such a number of steps.
        """
        total = self.fields["num_train_timesteps"]
        if not 1 <= num <= total:
            raise UserError(f"num_inference_steps={num} must be from 1 to the {total} of training")
        if FIELDS[self.kind] is FLOW:
            return self._flow_walk(levels.flow_sigmas(num, self.fields, tokens, sigmas), part)
        if self.kind in _OF_CHAIN or self.kind.startswith(("DDIM", "DDPM")):
            return self._chain_walk(num, part, eta)
        if eta:
            raise UserError(f"eta is for the schedulers DDIM and TCD, but this is {self.kind}: leave it out")
        return self._sigma_walk(num, part)

    def _flow_walk(self, sigmas: np.ndarray, part: Any) -> Walk:
        total = self.fields["num_train_timesteps"]
        whole = levels.flow_levels(sigmas, total)
        taken = whole.part(*part(whole.told))
        process = Parameterization(
            schedule=RectifiedFlow(), prediction=PREDICTIONS.build("velocity"), time_input=ScaledT(scale=float(total))
        )
        name = "flow_heun" if self.kind == "FlowMatchHeunDiscreteScheduler" else "flow_euler"
        return Walk(process=process, sampler=SAMPLERS.build(name), grid=_grid(RectifiedFlow(), taken.sigmas, taken))

    def _sigma_walk(self, num: int, part: Any) -> Walk:
        of_solver = self.kind in KINDS and KINDS[self.kind].spacing == "dpm"
        flow = bool(self.fields.get("use_flow_sigmas"))
        table = np.array([]) if flow else self._sigma_table()
        whole = (levels.solver_levels if of_solver else levels.sigma_levels)(num, self.fields, table)
        taken = whole.part(*part(whole.told))
        taken = taken.part(0, taken.moving)
        sampler = SAMPLERS.build({"name": "euler_ancestral"} if "EulerAncestral" in self.kind else self._solver())
        middles = self._middles(taken, table) if self.kind.startswith("KDPM2") else None
        unit = of_solver or self.fields["timestep_spacing"] == "leading"
        return self._visiting(
            taken,
            sampler,
            middles,
            prediction="velocity" if flow else None,
            start=1.0 if unit else float(taken.sigmas[0]),
            unscaled=not of_solver,
        )

    def _sigma_table(self) -> np.ndarray:
        squares = self.table()
        if self.fields.get("rescale_betas_zero_snr"):
            squares[-1] = 2.0**-24
        return np.sqrt((1.0 - squares) / squares)

    def _middles(self, taken: Levels, table: np.ndarray) -> Levels:
        """Levels of DPM2's second evaluation: half-way in log sigma to the level before fresh noise."""
        sigmas = taken.sigmas / taken.alphas
        ends = sigmas[1:]
        if "Ancestral" in self.kind:
            ends = ancestral_levels(sigmas[:-1], ends, 1.0)[0]
        middle = np.sqrt(sigmas[:-1] * ends)
        return levels.of_variance_preserving(levels.timed(middle, table), middle)

    def _chain_walk(self, num: int, part: Any, eta: float | None) -> Walk:
        fields, squares = self.fields, self.table()
        distilled = self.kind in ("LCMScheduler", "TCDScheduler")
        told = (levels.consistency_steps if distilled else levels.chain_steps)(num, fields)
        if told[0] >= len(squares) or told[-1] < 0:
            raise UserError(f"steps_offset={fields['steps_offset']} leads past the last of {len(squares)} steps")
        steps = told.astype(int)
        final = 1.0 if fields.get("set_alpha_to_one", True) else squares[0]
        own = np.append(squares[steps], squares[0] if self.kind == "TCDScheduler" else final)
        whole = Levels(told=told, alphas=np.sqrt(own), sigmas=np.sqrt(1.0 - own))
        first, end = part(whole.told)
        if self.kind == "PNDMScheduler":
            if eta:
                raise UserError("eta is for the schedulers DDIM and TCD, but this is PNDMScheduler: leave it out")
            # diffusers' list of steps, before it is cut, has its second step twice
            late = first > 1
            taken = whole.part(first - 1 if late else first, end)
            taken = taken.part(0, taken.moving)
            sampler = LatePNDM() if late else SAMPLERS.build("pndm" if len(taken.told) > 1 else "ddim")
            return self._visiting(taken, sampler)
        numbers = self._mixture(steps, squares, own, eta)
        taken = whole.part(first, end)
        end = first + taken.moving
        given = {name: tuple(map(float, values[first:end])) for name, values in numbers.items()}
        clip = bool(fields.get("clip_sample")) and self.kind.startswith("DDPM")
        return self._visiting(taken.part(0, taken.moving), Mixture(**given), clip_x0=clip)

    def _mixture(
        self, steps: np.ndarray, squares: np.ndarray, own: np.ndarray, eta: float | None
    ) -> dict[str, np.ndarray]:
        """The numbers of `given.Mixture`."""
        fields, here, zero = self.fields, own[:-1], np.zeros(len(steps))
        if self.kind == "LCMScheduler":
            scaled = steps * fields["timestep_scaling"]
            kept, made = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
            there = np.append(own[1:-1], 1.0)
            signal = np.sqrt(there)
            return {"xt": signal * kept, "x0": signal * made, "noise": zero, "fresh": np.sqrt(1.0 - there)}
        if self.kind == "TCDScheduler":
            eta = 0.3 if eta is None else eta
            following = np.append(steps[1:], 0)
            lower = squares[np.floor((1.0 - eta) * following).astype(int)]
            ratio = squares[following] / lower
            ratio[-1] = 1.0
            ratio = ratio if eta else np.ones_like(ratio)
            share = np.sqrt(ratio)
            return {
                "xt": zero,
                "x0": share * np.sqrt(lower),
                "noise": share * np.sqrt(1.0 - lower),
                "fresh": np.sqrt(1.0 - ratio),
            }
        following = steps - fields["num_train_timesteps"] // len(steps)
        there = np.where(following >= 0, squares[np.maximum(following, 0)], own[-1])
        alpha_ratio = here / there
        variance = (1.0 - there) / (1.0 - here) * (1.0 - alpha_ratio)
        if self.kind.startswith("DDPM"):
            large = 1.0 - alpha_ratio
            kind = fields["variance_type"]
            if kind not in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
                raise UserError(f"variance_type={kind!r} of a pipeline is not supported; it can be 'fixed_small'")
            fresh = np.where(steps > 0, large if "large" in kind else variance, 0.0)
            return {
                "xt": np.sqrt(alpha_ratio) * (1.0 - there) / (1.0 - here),
                "x0": np.sqrt(there) * large / (1.0 - here),
                "noise": zero,
                "fresh": np.sqrt(np.maximum(fresh, 0.0)),
            }
        variance = (eta or 0.0) ** 2 * np.maximum(variance, 0.0)
        return {"xt": zero, "x0": np.sqrt(there), "noise": np.sqrt(1.0 - there - variance), "fresh": np.sqrt(variance)}

    def _visiting(
        self,
        taken: Levels,
        sampler: Sampler,
        middles: Levels | None = None,
        *,
        prediction: str | None = None,
        **facts: Any,
    ) -> Walk:
        """The walk through these levels, whose times the network gets unchanged; `middles` lie between them."""
        count = len(taken.told)
        times = 1.0 - np.arange(count + 1) / count
        told = np.append(taken.told, taken.told[-1])
        points, alphas, sigmas = times, taken.alphas, taken.sigmas
        if middles is not None:  # every second point; the last transition has none

            def mixed(own: np.ndarray, between: np.ndarray) -> np.ndarray:
                found = np.empty(2 * count + 1)
                found[::2], found[1::2] = own, between
                return np.delete(found, 2 * count - 1)

            points = mixed(times, times[:-1] - 0.5 / count)
            alphas, sigmas = mixed(alphas, middles.alphas), mixed(sigmas, middles.sigmas)
            told = mixed(told, middles.told)
        schedule = Visited(times=_tuple(points), alphas=_tuple(alphas), sigmas=_tuple(sigmas))
        process = Parameterization(
            schedule=schedule,
            prediction=PREDICTIONS.build(prediction or self._sampling().prediction),
            time_input=VisitedTime(times=_tuple(points), told=_tuple(told)),
        )
        return Walk(process=process, sampler=sampler, grid=_grid(schedule, times, taken), **facts)


_OF_CHAIN = ("PNDMScheduler", "LCMScheduler", "TCDScheduler")


def _grid(schedule: Any, times: np.ndarray, taken: Levels) -> TimeGrid:
    with np.errstate(divide="ignore"):
        log_snrs = 2.0 * (np.log(taken.alphas) - np.log(taken.sigmas))
    return TimeGrid(
        schedule=schedule, times=np.asarray(times), alphas=taken.alphas, sigmas=taken.sigmas, log_snrs=log_snrs
    )


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))
