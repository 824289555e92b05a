"""Losses for tokens: D3PM, MDLM, SEDD and discrete flow matching.

All in nats per token unless said otherwise; batch["data"] holds tokens as integers. p(x0 | x_t) is the softmax of a
token denoiser's logits (`schedulers/tokens.py`).

D3PM (Austin et al. 2021, arXiv 2107.03006, eq. 1 and 5), on a chain of T steps, in bits per token:

    (1)   vb = T E_n[ KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n)) ], with -log p(x0 | x_1) instead of n = 1,
    (2)   hybrid = vb + lambda E_n[-log p(x0 | x_n)]            `normalization` "paper", lambda = 0.001,
    (3)   hybrid = vb / T + lambda E_n[-log p(x0 | x_n)]        `normalization` "code", lambda = 0.001,

with both terms in bits. (3) is what the authors' code minimises (google-research, d3pm/images/diffusion_categorical.py,
`training_losses`): its mean over steps lacks the factor T, so the cross-entropy has T times the weight that it has in
(2), and gradients are T times smaller before they are clipped.

MDLM (Sahoo et al. 2024, arXiv 2406.07524, eq. 10) masks tokens in continuous time. The weight is -kept' / (1 - kept), 1
/ t for the linear schedule; tokens that are not masked are known and cost nothing:

    (4)   E_t[ rate kept / (1 - kept) sum over masked of -log p(x0 | x_t) ].

SEDD (Lou et al. 2023, arXiv 2310.16834, eq. 7 and 11), with s_y the predicted ratio p_t(y) / p_t(x_t) and r_y the true
one given x0, over values y != x_t to which the reversed process may go:

    (5)   E_t[ rate sum over tokens, y of c (s_y - r_y log s_y + r_y (log r_y - 1)) ],

with c = 1 for masks and 1 / K for uniform noise. The network's logits are log s_y, for masks log(s_y (e^sigma - 1)), so
that correct logits equal log p(x0).

Discrete flow matching (Gat et al. 2024, arXiv 2407.15595, eq. 25): the cross-entropy of x0, over all tokens.

In continuous time t is uniform in [`least_time`, 1], evenly spread over a batch; least_time = 0.001 is the
`sampling_eps` of the authors' code of MDLM and of SEDD.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers.arrays import like_data
from diffusion_jax.schedulers.token_chains import TokenChain
from diffusion_jax.schedulers.tokens import TokenDenoiser, TokenProcess
from diffusion_jax.specs import DATA

_LEAST_IN_BOUNDS = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenObjective(Objective):
    """Base: the losses of a process, on the tokens of a batch."""

    process_kind: ClassVar[str] = "tokens"
    discrete: ClassVar[bool] = True

    process: TokenProcess | TokenChain

    @property
    def bounds_likelihood(self) -> bool:
        """Whether the objective has a `bound` of its own."""
        return type(self).bound is not TokenObjective.bound

    def tokens(self, batch: Batch) -> Int[Array, "batch ..."]:
        """x0.

        Raises:
          UserError: there is no data, or it is not tokens.
        """
        if DATA not in batch:
            raise UserError(f"an objective on tokens needs batch['data'], got {sorted(batch)}")
        if not jnp.issubdtype(batch[DATA].dtype, jnp.integer):
            raise UserError(f"an objective on tokens needs whole numbers, got {batch[DATA].dtype}: use codec values")
        return batch[DATA]

    def bound(self, denoise_fn: TokenDenoiser, x0: Int[Array, "batch ..."], key: BatchKey) -> Float[Array, " batch"]:
        """An unbiased estimate, at one time drawn for each example, of an upper bound on -log P(x0), in nats per token.

        Raises:
          UserError: this objective does not bound the likelihood.
        """
        raise UserError(f"the loss of {type(self).__name__} is not a bound on a likelihood")


def log_likelihood(logits: Float[Array, "batch ... K"], x0: Int[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """log p(x0 | x_t) of every token."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), x0[..., None], axis=-1)[..., 0]


def _mean(values: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


@OBJECTIVES.register("d3pm", example={"process": TokenChain(num_tokens=4, num_steps=6)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class D3PM(TokenObjective):
    """D3PM with the hybrid loss, eq. (2) or (3).

    `cross_entropy_weight` is lambda; `vb_weight` 0 leaves only the cross-entropy.
    """

    process_kind: ClassVar[str] = "token_chain"

    process: TokenChain
    cross_entropy_weight: float = 1e-3
    vb_weight: float = 1.0
    normalization: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        if self.normalization not in ("paper", "code"):
            raise UserError(
                "normalization of objective d3pm is 'paper', the bound as a sum over steps, or 'code', its mean over "
                f"steps as in the authors' code, got {self.normalization!r}"
            )

    def loss(
        self, denoise_fn: TokenDenoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Metrics `vb` in bits per token and `cross_entropy` in nats per token."""
        x0, chain = self.tokens(batch), self.process
        step = self._steps(key)
        xt = chain.corrupt(x0, step, key.fold_in("corrupt"))
        logits = denoise_fn(xt, step / chain.num_steps)
        cross_entropy = _mean(-log_likelihood(logits, x0))
        bits = self.bits(logits, x0, xt, step)
        vb = chain.num_steps * bits
        share = vb if self.normalization == "paper" else bits
        loss = jnp.mean(self.vb_weight * share + self.cross_entropy_weight * cross_entropy / math.log(2.0))
        return loss, {"loss": loss, "vb": jnp.mean(vb), "cross_entropy": jnp.mean(cross_entropy)}

    def bound(self, denoise_fn: TokenDenoiser, x0: Int[Array, "batch ..."], key: BatchKey) -> Float[Array, " batch"]:
        """(1) at one step for each example, and the divergence between the chain's end and its prior."""
        chain = self.process
        step = self._steps(key)
        xt = chain.corrupt(x0, step, key.fold_in("corrupt"))
        terms = chain.num_steps * self.bits(denoise_fn(xt, step / chain.num_steps), x0, xt, step) * math.log(2.0)
        end, prior = jnp.asarray(chain.matrices[1][-1]), jnp.asarray(chain.prior_probabilities(), jnp.float32)
        ratio = jnp.log(jnp.maximum(end, 1e-20)) - jnp.log(jnp.maximum(prior, 1e-20))
        return terms + _mean(jnp.sum(end * ratio, axis=-1)[x0])

    def _steps(self, key: BatchKey) -> Int[Array, " batch"]:
        """1 ... T, with low discrepancy."""
        u = key.fold_in("time").low_discrepancy() * self.process.num_steps
        return jnp.minimum(jnp.floor(u), self.process.num_steps - 1).astype(jnp.int32) + 1

    def bits(
        self,
        logits: Float[Array, "batch ... K"],
        x0: Int[Array, "batch ..."],
        xt: Int[Array, "batch ..."],
        step: Int[Array, " batch"],
    ) -> Float[Array, " batch"]:
        """One term of (1), in bits per token."""
        true = self.process.posterior(xt, jax.nn.one_hot(x0, self.process.num_tokens), step)
        found = self.process.posterior(xt, jax.nn.softmax(logits), step)
        ratio = jnp.log(jnp.maximum(true, 1e-20)) - jnp.log(jnp.maximum(found, 1e-20))
        kl = jnp.sum(true * ratio, axis=-1)
        terms = jnp.where(like_data(step == 1, x0), -log_likelihood(logits, x0), kl)
        return _mean(terms) / math.log(2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousTime(TokenObjective):
    """Base of the losses in continuous time, which draws t."""

    process: TokenProcess
    least_time: float = 1e-3

    def __post_init__(self):
        if not 0 < self.least_time < 1:
            raise UserError(f"an objective of tokens needs 0 < least_time < 1, got {self.least_time}")

    def times(self, key: BatchKey) -> Float[Array, " batch"]:
        """t in [least_time, 1], with low discrepancy."""
        return self.least_time + (1.0 - self.least_time) * key.fold_in("time").low_discrepancy()


@OBJECTIVES.register("mdlm", example={"process": TokenProcess(num_tokens=4)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class MDLM(ContinuousTime):
    """Masked diffusion, eq. (4)."""

    def __post_init__(self):
        super().__post_init__()
        if not self.process.has_mask:
            raise UserError(
                "mdlm is written for masks: noise of its process must be 'mask'; for uniform noise use sedd"
            )

    def loss(
        self, denoise_fn: TokenDenoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Metrics `bits`, the same per token in bits, and `cross_entropy` over the masked tokens."""
        x0, t = self.tokens(batch), self.times(key)
        xt, masked = self.process.corrupt(x0, t, key.fold_in("corrupt"))
        costs = jnp.where(masked, -log_likelihood(denoise_fn(xt, t), x0), 0.0)
        loss = jnp.mean(self.weight(t) * _mean(costs))
        cross_entropy = jnp.sum(costs) / jnp.maximum(jnp.sum(masked), 1)
        return loss, {"loss": loss, "bits": loss / math.log(2.0), "cross_entropy": cross_entropy}

    def bound(self, denoise_fn: TokenDenoiser, x0: Int[Array, "batch ..."], key: BatchKey) -> Float[Array, " batch"]:
        """(4) over all shares of masks from 0 to 1; the loss, as in the paper, ends at 1 - eps."""
        share = jnp.maximum(key.fold_in("time").low_discrepancy(), 1e-6)
        masked = key.fold_in("replaced").uniforms(x0.shape[1:]) < like_data(share, x0)
        logits = denoise_fn(jnp.where(masked, self.process.mask, x0), share)
        return _mean(jnp.where(masked, -log_likelihood(logits, x0), 0.0)) / share

    def weight(self, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """-kept' / (1 - kept)."""
        kept = self.process.schedule.kept(t)
        return self.process.schedule.rate(t) * kept / (1.0 - kept)


@OBJECTIVES.register("sedd", example={"process": TokenProcess(num_tokens=4)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class SEDD(ContinuousTime):
    """Score entropy, eq. (5). The authors' network has sigma = -log kept as time input: its process has `told`
    "sigma"."""

    def loss(
        self, denoise_fn: TokenDenoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Metrics `bits`, the bound in bits per token, and `score_entropy`, without the rate."""
        entropy, rate = self._entropy(denoise_fn, self.tokens(batch), self.times(key), key)
        loss = jnp.mean(rate * entropy)
        return loss, {"loss": loss, "bits": loss / math.log(2.0), "score_entropy": jnp.mean(entropy)}

    def bound(self, denoise_fn: TokenDenoiser, x0: Int[Array, "batch ..."], key: BatchKey) -> Float[Array, " batch"]:
        """(5) down to t = 0; as in the paper, without the divergence at t = 1, where a share kept(1) is left."""
        t = jnp.maximum(key.fold_in("time").low_discrepancy(), _LEAST_IN_BOUNDS)
        entropy, rate = self._entropy(denoise_fn, x0, t, key)
        return rate * entropy

    def _entropy(self, denoise_fn, x0, t, key) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """The mean of `score_entropy` over the tokens at every example's time, and the rate there."""
        xt, _ = self.process.corrupt(x0, t, key.fold_in("corrupt"))
        return _mean(self.score_entropy(denoise_fn(xt, t), x0, xt, t)), self.process.schedule.rate(t)

    def score_entropy(
        self,
        logits: Float[Array, "batch ... K"],
        x0: Int[Array, "batch ..."],
        xt: Int[Array, "batch ..."],
        t: Float[Array, " batch"],
    ) -> Float[Array, "batch ..."]:
        """The sum of (5) for every token; zero exactly where the ratios are right."""
        size = self.process.num_tokens
        kept = like_data(self.process.schedule.kept(t), logits)
        is_x0, is_xt = jax.nn.one_hot(x0, size), jax.nn.one_hot(xt, size)  # no row for the mask
        log_scores = log_ratios(self.process, logits, t)
        if self.process.has_mask:
            true, counts = kept / (1.0 - kept) * is_x0, jnp.ones_like(is_xt)
            counts = counts * (xt == self.process.mask)[..., None]
        else:
            probability = kept * is_x0 + (1.0 - kept) / size
            true = probability / jnp.sum(probability * is_xt, axis=-1, keepdims=True)
            counts = (1.0 - is_xt) / size
        constant = jnp.where(true > 0, true * (jnp.log(jnp.maximum(true, 1e-30)) - 1.0), 0.0)
        return jnp.sum(counts * (jnp.exp(log_scores) - true * log_scores + constant), axis=-1)


def log_ratios(
    process: TokenProcess, logits: Float[Array, "batch ... K"], t: Float[Array, "*batch"]
) -> Float[Array, "batch ... K"]:
    """log s_y of SEDD from a network's logits."""
    if not process.has_mask:
        return logits
    kept = jnp.asarray(process.schedule.kept(t), logits.dtype)
    return logits + like_data(jnp.log(kept) - jnp.log1p(-kept), logits)


@OBJECTIVES.register("discrete_flow", example={"process": TokenProcess(num_tokens=4)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteFlow(ContinuousTime):
    """Discrete flow matching with the mixture path: the cross-entropy of x0."""

    def loss(
        self, denoise_fn: TokenDenoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Metric `cross_entropy` is over the replaced tokens."""
        x0, t = self.tokens(batch), self.times(key)
        xt, replaced = self.process.corrupt(x0, t, key.fold_in("corrupt"))
        costs = -log_likelihood(denoise_fn(xt, t), x0)
        loss = jnp.mean(_mean(costs))
        over_replaced = jnp.sum(costs * replaced) / jnp.maximum(jnp.sum(replaced), 1)
        return loss, {"loss": loss, "cross_entropy": over_replaced}
