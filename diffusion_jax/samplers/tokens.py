"""Samplers of tokens: each walks from t = 1 to t = 0 in N equal steps, as one `lax.scan`.

With p = softmax of the token denoiser's logits at (x_t, t), for a step t -> s:

    d3pm_ancestral       x_{n-1} from the chain's posterior, averaged over p (Austin et al. 2021, eq. 4).
                         N is the chain's T.
    mdlm                 Every mask is removed with probability (kept_s - kept_t) / (1 - kept_t), for a draw of p
                         (Sahoo et al. 2024, eq. 6).
    mdlm_cached          The same; if no token changed in the last step, the previous logits are used again, so that
                         the network is evaluated less often. For networks without a time input.
    sedd_euler           A jump to y with probability h rate s_y (times 1 / K for uniform noise), h = t - s
                         (Lou et al. 2023).
    sedd_tau_leaping     The same with 1 - exp(-h rate sum_y s_y): at most one jump in a step.
    sedd_analytic        Tweedie's: q(x_s | x_t) from the ratios themselves, exact for one token
                         (Lou et al. 2023, eq. 19).
    discrete_flow_euler  With probability h rate kept / (1 - kept) a new draw of p (Gat et al. 2024, eq. 22 to 24).

After the last step, tokens that are still masked become draws of p (d3pm and mdlm have none left).
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS
from diffusion_jax.schedulers.token_chains import TokenChain, draw_categorical
from diffusion_jax.schedulers.tokens import TokenDenoiser, TokenProcess


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens", "nfe", "trajectory"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSamples:
    """Tokens [batch, ...], evaluations of the denoiser, and all states [N + 1, batch, ...] if asked for."""

    tokens: Int[Array, "batch ..."]
    nfe: int | Int[Array, ""]
    trajectory: Int[Array, "steps batch ..."] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampler:
    """A rule for one step t -> s, given the logits at t; `process_kind` is the kind of process that it belongs to."""

    process_kind: ClassVar[str] = "tokens"
    caches: ClassVar[bool] = False

    def check(self, process: Any, num_steps: int) -> None:
        """Raise UserError if the sampler cannot run on this process with so many steps."""
        if process.process_kind != self.process_kind:
            raise UserError(
                f"sampler {type(self).__name__} runs in continuous time; for a d3pm chain use d3pm_ancestral"
            )

    def step(
        self,
        logits: Float[Array, "batch ... K"],
        x: Int[Array, "batch ..."],
        t: Float[Array, ""],
        s: Float[Array, ""],
        process: Any,
        key: BatchKey,
    ) -> Int[Array, "batch ..."]:
        """The tokens at s."""
        raise NotImplementedError


def sample_tokens(
    sampler: TokenSampler,
    denoiser: TokenDenoiser,
    process: TokenProcess | TokenChain,
    num_steps: int,
    shape: tuple[int, ...],
    key: BatchKey,
    *,
    return_trajectory: bool = False,
) -> TokenSamples:
    """Draw tokens of shape [batch, *shape]; to be called inside jit, with sampler, process and num_steps static.

    Raises:
      UserError: the sampler cannot run on this process in so many steps.
    """
    if num_steps < 1:
        raise UserError(f"a sampler needs at least 1 step, got {num_steps}")
    sampler.check(process, num_steps)
    x = process.prior(key.fold_in("prior"), shape)
    keys = key.fold_in("sampler").counter_based()
    times = jnp.linspace(1.0, 0.0, num_steps + 1)

    def step(carry: tuple, index: Array) -> tuple[tuple, Array | None]:
        x, logits, stale, count = carry
        t, s = times[index], times[index + 1]
        fresh = functools.partial(denoiser, x, t)
        logits = jax.lax.cond(stale, fresh, lambda: logits) if sampler.caches else fresh()
        moved = sampler.step(logits, x, t, s, process, keys.at_step(index))
        count = count + (stale.astype(jnp.int32) if sampler.caches else 1)
        return (moved, logits, jnp.any(moved != x), count), moved if return_trajectory else None

    logits = jnp.zeros((*x.shape, process.num_tokens), jnp.result_type(float))
    first = (x, logits, jnp.bool_(True), jnp.int32(0))
    (tokens, logits, _, count), visited = jax.lax.scan(step, first, jnp.arange(num_steps))
    if process.has_mask:
        rest = draw_categorical(jax.nn.softmax(logits), keys.fold_in("rest"))
        tokens = jnp.where(tokens == process.mask, rest, tokens)
    return TokenSamples(
        tokens=tokens,
        nfe=count if sampler.caches else num_steps,
        trajectory=jnp.concatenate([x[None], visited]) if return_trajectory else None,
    )


@SAMPLERS.register("d3pm_ancestral")
@dataclasses.dataclass(frozen=True, kw_only=True)
class D3PMAncestral(TokenSampler):
    """The chain itself, step by step.

    The last step draws from p(x0 | x_1), which gives the model's own distribution; with `last_step` "argmax" it takes
    the likeliest value, as in the authors' code (google-research, d3pm/images/diffusion_categorical.py, `p_sample`).
    """

    process_kind: ClassVar[str] = "token_chain"

    last_step: Literal["draw", "argmax"] = "draw"

    def __post_init__(self):
        if self.last_step not in ("draw", "argmax"):
            raise UserError(f"last_step of sampler d3pm_ancestral is 'draw' or 'argmax', got {self.last_step!r}")

    def check(self, process: Any, num_steps: int) -> None:
        if process.process_kind != self.process_kind:
            raise UserError("sampler d3pm_ancestral needs a chain (objective d3pm); in continuous time use mdlm")
        if num_steps != process.num_steps:
            raise UserError(
                f"sampler d3pm_ancestral walks every step of its chain: set the steps of sampling to "
                f"{process.num_steps}, or train a chain of {num_steps}"
            )

    def step(self, logits, x, t, s, process, key):
        n = jnp.round(t * process.num_steps).astype(jnp.int32)
        p = jax.nn.softmax(logits)
        earlier = jnp.where(n == 1, p, process.posterior(x, p, n))
        drawn = draw_categorical(earlier, key)
        return jnp.where(n == 1, jnp.argmax(p, axis=-1), drawn) if self.last_step == "argmax" else drawn


@SAMPLERS.register("mdlm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MDLMSampler(TokenSampler):
    """Lift masks."""

    def check(self, process: Any, num_steps: int) -> None:
        super().check(process, num_steps)
        if not process.has_mask:
            raise UserError(f"sampler {type(self).__name__} lifts masks; for uniform noise use sedd_analytic")

    def step(self, logits, x, t, s, process, key):
        kept_t, kept_s = process.schedule.kept(t), process.schedule.kept(s)
        lifted = key.fold_in("lift").uniforms(x.shape[1:]) < (kept_s - kept_t) / (1.0 - kept_t)
        drawn = draw_categorical(jax.nn.softmax(logits), key.fold_in("draw"))
        return jnp.where((x == process.mask) & (lifted | (s <= 0)), drawn, x)


@SAMPLERS.register("mdlm_cached")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MDLMCached(MDLMSampler):
    """Remove masks, and evaluate the network only after a change."""

    caches: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSampler(TokenSampler):
    """Base: ratios s_y = p_t(y) / p_t(x), and jumps x -> y."""

    def ratios(self, logits: Array, t: Array, process: TokenProcess) -> Float[Array, "batch ... K"]:
        """s_y, from logits that are log p(x0) for masks and log s_y for uniform noise (see `objectives/tokens.py`)."""
        if not process.has_mask:
            return jnp.exp(logits)
        kept = process.schedule.kept(t)
        return jnp.exp(logits) * (kept / (1.0 - kept))

    def rates(self, logits, x, t, process) -> Float[Array, "batch ... K"]:
        """Rate of the reversed process from x to y, 0 for y = x."""
        forward = process.schedule.rate(t)
        ratios = self.ratios(logits, t, process)
        if process.has_mask:
            return forward * ratios * (x == process.mask)[..., None]
        return forward / process.num_tokens * ratios * (1.0 - jax.nn.one_hot(x, process.num_tokens))


@SAMPLERS.register("sedd_euler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SEDDEuler(ScoreSampler):
    """Jump with probabilities that are linear in h."""

    def step(self, logits, x, t, s, process, key):
        jumps = (t - s) * self.rates(logits, x, t, process)
        total = jnp.sum(jumps, axis=-1)
        moves = key.fold_in("jump").uniforms(x.shape[1:]) < self.probability(total)
        return jnp.where(moves, draw_categorical(jumps, key.fold_in("draw")), x)

    def probability(self, total: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """The probability of a jump, from h times the total rate."""
        return jnp.minimum(total, 1.0)


@SAMPLERS.register("sedd_tau_leaping")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SEDDTauLeaping(SEDDEuler):
    """Jump with the probability that a Poisson process jumps at least once."""

    def probability(self, total: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        return -jnp.expm1(-total)


@SAMPLERS.register("sedd_analytic")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SEDDAnalytic(ScoreSampler):
    """q(x_s | x_t) = (ratios of p_s to p_t(x_t)) times q(x_t | x_s)."""

    def step(self, logits, x, t, s, process, key):
        size = process.num_tokens
        kept_t, kept_s = process.schedule.kept(t), process.schedule.kept(s)
        ratio = kept_t / kept_s  # kept between s and t
        scores = self.ratios(logits, t, process)
        if process.has_mask:
            # p_s(y) / p_t(mask) = s_y / ratio for values; the forward step to the mask has probability 1 - ratio.
            lifted = scores * (1.0 - ratio) / ratio
            stays = jnp.maximum(1.0 - jnp.sum(lifted, axis=-1, keepdims=True), 0.0)
            drawn = draw_categorical(jnp.concatenate([lifted, stays], axis=-1), key)
            return jnp.where(x == process.mask, drawn, x)
        here = jax.nn.one_hot(x, size)
        scores = scores * (1.0 - here) + here
        # p_t = ratio p_s + (1 - ratio) mean(p_s), so p_s = (p_t - (1 - ratio) mean(p_t)) / ratio
        earlier = (scores - (1.0 - ratio) * jnp.mean(scores, axis=-1, keepdims=True)) / ratio
        forward = ratio * here + (1.0 - ratio) / size
        return draw_categorical(jnp.maximum(earlier, 0.0) * forward, key)


@SAMPLERS.register("discrete_flow_euler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteFlowEuler(TokenSampler):
    """Redraw from p at the rate of the mixture path."""

    def step(self, logits, x, t, s, process, key):
        kept = process.schedule.kept(t)
        rate = process.schedule.rate(t) * kept / (1.0 - kept)
        redraws = key.fold_in("jump").uniforms(x.shape[1:]) < jnp.minimum((t - s) * rate, 1.0)
        return jnp.where(redraws, draw_categorical(jax.nn.softmax(logits), key.fold_in("draw")), x)
