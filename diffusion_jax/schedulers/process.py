"""Processes by name: what is diffused, how it is corrupted, and what a network's input and output mean.

    gaussian      xt = alpha x0 + sigma noise      (`parameterization.py`)
    tokens        kept or replaced, at any time    (`tokens.py`)
    token_chain   by matrices, in T steps          (`token_chains.py`)

Every process has `denoiser(network_fn)`; its `discrete` says whether it diffuses tokens, and its `process_kind` is one
of the three names. Objectives and samplers have a `process_kind` too, and fit only a process of the same kind.
"""

from collections.abc import Mapping
from typing import Any, Literal

from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.parameterization import InputScale, Parameterization, TimeInput, built
from diffusion_jax.schedulers.prediction import PredictionKind
from diffusion_jax.schedulers.schedule import NoiseSchedule
from diffusion_jax.schedulers.token_chains import TokenChain
from diffusion_jax.schedulers.tokens import TOKEN_SCHEDULES, OfTokens, TokenProcess, TokenSchedule

Process = Parameterization | TokenProcess | TokenChain
Spec = str | Mapping[str, Any]

PROCESSES: Registry[Process] = Registry("process", Parameterization, OfTokens)


@PROCESSES.register(
    "gaussian", example={"schedule": "rectified_flow", "prediction": "velocity", "time_input": "scaled_t"}
)
def gaussian(
    schedule: Spec | NoiseSchedule,
    prediction: Spec | PredictionKind,
    time_input: Spec | TimeInput,
    input_scale: Spec | InputScale | None = None,
) -> Parameterization:
    """xt = alpha x0 + sigma noise.

    Args:
      schedule: noise schedule, which gives alpha and sigma.
      prediction: what the network's output means.
      time_input: form in which the network receives the time.
      input_scale: factor on the network's input; None for the one that suits the prediction.
    """
    return Parameterization.build(
        schedule=schedule, prediction=prediction, time_input=time_input, input_scale=input_scale
    )


@PROCESSES.register("tokens", example={"num_tokens": 4})
def tokens(
    num_tokens: int = 256,
    token_schedule: Spec | TokenSchedule = "linear",
    noise: Literal["mask", "uniform"] = "mask",
    told: Literal["", "scaled_t", "sigma", "nothing"] = "",
) -> TokenProcess:
    """Tokens in continuous time, replaced by the mask or by one of the values."""
    return TokenProcess(num_tokens=num_tokens, schedule=built(TOKEN_SCHEDULES, token_schedule), noise=noise, told=told)


@PROCESSES.register("token_chain", example={"num_tokens": 4, "num_steps": 6})
def token_chain(
    num_tokens: int = 256,
    num_steps: int = 1000,
    kind: Literal["uniform", "absorbing", "gaussian"] = "gaussian",
    told: Literal["", "scaled_t", "nothing"] = "",
) -> TokenChain:
    """Tokens in T steps, each by a matrix of transitions."""
    return TokenChain(num_tokens=num_tokens, num_steps=num_steps, kind=kind, told=told)


def with_process(kind: str) -> list[str]:
    """The names of the processes with this kind."""
    return [name for name in PROCESSES if PROCESSES.example(name).process_kind == kind]
