"""Diffusion of tokens in continuous time: the share of tokens kept at time t, and what replaces the others.

A token x0 with K values keeps its value up to time t with probability kept(t), and is replaced otherwise, independently
of all others (Austin et al. 2021, arXiv 2107.03006; Campbell et al. 2022; Sahoo et al. 2024, arXiv 2406.07524; Lou et
al. 2023, arXiv 2310.16834; Gat et al. 2024, arXiv 2407.15595):

    (1)   q(x_t | x0) = kept(t) [x_t = x0] + (1 - kept(t)) noise(x_t),

where the noise is always the mask, or uniform over the K values.

As everywhere, t = 0 is data, with kept(0) = 1; at t = 1 no or almost no token is kept. With sigma(t) = -log kept(t),
rate(t) = sigma'(t) is the rate at which tokens are replaced.

    schedule     kept(t)
    linear       1 - (1 - eps) t             log-linear in sigma: MDLM and SEDD
    cosine       cos(pi t / 2)
    geometric    exp(-s0 (s1 / s0)^t)        SEDD; a little noise is left at t = 0

A *token denoiser* maps (tokens, t) to logits of x0 over the K values; the mask, if there is one, is token K.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers.arrays import as_compute, as_float, like_data

TokenDenoiser = Callable[[Int[Array, "batch ..."], Float[Array, "*batch"]], Float[Array, "batch ... K"]]
"""(tokens at time t, t) -> logits of the tokens at time 0; t is [] or [batch]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSchedule:
    """kept(t) of (1)."""

    def kept(self, t: Array) -> Array:
        """The probability that a token is kept, same shape as t."""
        raise NotImplementedError

    def rate(self, t: Array) -> Array:
        """-d log kept / dt."""
        t = as_compute(t)
        return -jax.jvp(lambda t: jnp.log(self.kept(t)), (t,), (jnp.ones_like(t),))[1]


TOKEN_SCHEDULES: Registry[TokenSchedule] = Registry("token schedule", TokenSchedule)


@TOKEN_SCHEDULES.register("linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearTokens(TokenSchedule):
    """kept = 1 - (1 - eps) t; a share eps is left at t = 1."""

    eps: float = 1e-3

    def kept(self, t: Array) -> Array:
        return 1.0 - (1.0 - self.eps) * as_float(t)

    def rate(self, t: Array) -> Array:
        return (1.0 - self.eps) / self.kept(t)


@TOKEN_SCHEDULES.register("cosine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineTokens(TokenSchedule):
    """kept = (1 - eps) cos(pi t / 2) + eps."""

    eps: float = 1e-3

    def kept(self, t: Array) -> Array:
        return (1.0 - self.eps) * jnp.cos(0.5 * math.pi * as_compute(t)) + self.eps


@TOKEN_SCHEDULES.register("geometric")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricTokens(TokenSchedule):
    """sigma = s0 (s1 / s0)^t."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def kept(self, t: Array) -> Array:
        return jnp.exp(-self.sigma_min * (self.sigma_max / self.sigma_min) ** as_compute(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfTokens:
    """Base of the token processes: how tokens become a network's input, and what its output means.

    A network of images takes one one-hot channel for each value and for the mask; it returns K channels for each
    channel of the data. With `sequences` the network takes the tokens themselves, [batch, length], and returns [batch,
    length, at least K].

    Attributes:
      num_tokens: K, the values that a token can have, without the mask.
      told: the network's time input: "scaled_t", 1000 t; "sigma", -log kept(t); or "nothing", always 0, as in MDLM,
        where the number of masks determines the time; "" for "nothing" where there is a mask, else "scaled_t".
      sequences: whether the network takes tokens instead of one-hot channels.
      scale: factor in "scaled_t".
    """

    discrete: ClassVar[bool] = True
    """Whether the process diffuses tokens."""
    process_kind: ClassVar[str] = "tokens"
    """The kind of process; objectives and samplers name the kind that they belong to."""

    num_tokens: int
    told: Literal["", "scaled_t", "sigma", "nothing"] = ""
    sequences: bool = False
    scale: float = 1000.0

    @property
    def has_mask(self) -> bool:
        """Whether token K is the mask. A network that returns zeros then means log(1 / K): all values are equally
        likely."""
        return False

    def sigma(self, t: Array) -> Array:
        """-log kept(t), same shape as t.

        Raises:
          UserError: the process has no probability of keeping a token.
        """
        raise UserError(f"{type(self).__name__} has no sigma: its network is told 'scaled_t' or 'nothing'")

    def channels(self, data_channels: int) -> tuple[int, int]:
        """Channels into the network and out of it, for tokens [batch, height, width, data_channels]."""
        values = self.num_tokens + int(self.has_mask)
        if self.sequences:  # the authors' networks have a logit for the mask, which is never used
            return values, values
        return data_channels * values, data_channels * self.num_tokens

    def denoiser(self, network_fn: Callable[..., Float[Array, "batch ..."]]) -> TokenDenoiser:
        """The token denoiser of a network whose parameters, conditioning and dropout are bound."""

        def denoise(xt: Int[Array, "batch ..."], t: Float[Array, "*batch"]) -> Float[Array, "batch ... K"]:
            time = jnp.broadcast_to(self._time(as_compute(t)), xt.shape[:1])
            if self.sequences:
                logits = as_compute(network_fn(xt.reshape(xt.shape[0], -1), time))[..., : self.num_tokens]
            else:
                one_hot = jax.nn.one_hot(xt, self.num_tokens + int(self.has_mask))
                logits = as_compute(network_fn(one_hot.reshape(*xt.shape[:-1], -1), time))
                logits = logits[..., : xt.shape[-1] * self.num_tokens]
            logits = logits.reshape(*xt.shape, self.num_tokens)
            return logits - math.log(self.num_tokens) if self.has_mask else logits

        return denoise

    def _time(self, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        told = self.told or ("nothing" if self.has_mask else "scaled_t")
        return self.sigma(t) if told == "sigma" else t * (self.scale if told == "scaled_t" else 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenProcess(OfTokens):
    """Eq. (1) in continuous time: a schedule, the number of values K, and what replaces a token."""

    schedule: TokenSchedule = LinearTokens()
    noise: Literal["mask", "uniform"] = "mask"

    def __post_init__(self):
        if self.noise not in ("mask", "uniform") or self.num_tokens < 2:
            raise UserError(
                f"tokens need num_tokens >= 2 and noise 'mask' or 'uniform', got {self.num_tokens} and {self.noise!r}"
            )

    @property
    def has_mask(self) -> bool:
        """Whether token K is the mask."""
        return self.noise == "mask"

    def sigma(self, t: Array) -> Array:
        return -jnp.log(self.schedule.kept(t))

    @property
    def mask(self) -> int:
        """The mask's index."""
        return self.num_tokens

    def prior(self, key: BatchKey, shape: tuple[int, ...]) -> Int[Array, "batch ..."]:
        """Tokens at t = 1, where none is kept, [batch, *shape]."""
        if self.has_mask:
            return jnp.full((key.index.shape[0], *shape), self.mask, jnp.int32)
        return jnp.minimum((key.uniforms(shape) * self.num_tokens).astype(jnp.int32), self.num_tokens - 1)

    def corrupt(
        self, x0: Int[Array, "batch ..."], t: Float[Array, " batch"], key: BatchKey
    ) -> tuple[Int[Array, "batch ..."], Bool[Array, "batch ..."]]:
        """x_t of (1), and which tokens were replaced."""
        kept = like_data(as_compute(self.schedule.kept(t)), x0)
        replaced = key.fold_in("replaced").uniforms(x0.shape[1:]) >= kept
        return jnp.where(replaced, self.prior(key.fold_in("noise"), x0.shape[1:]), x0), replaced
