"""D3PM: chains of T steps on tokens with K values, given by transition matrices.

Austin et al. 2021 (arXiv 2107.03006), eq. 2, 3 and app. A. With rows summing to one,

    (1)   q(x_n | x_{n-1}) = Q_n[x_{n-1}, x_n],     q(x_n | x0) = Qbar_n[x0, x_n],     Qbar_n = Q_1 ... Q_n,
    (2)   q(x_{n-1} | x_n, x0) ~ Q_n[x_{n-1}, x_n] Qbar_{n-1}[x0, x_{n-1}].

    kind        Q_n                                                   beta_n
    uniform     (1 - beta) I + beta 11^T / K                          cosine
    absorbing   (1 - beta) I + beta 1 e_m^T, m = K // 2               1 / (T - n + 1): a share n / T is absorbed
    gaussian    exp(-4 |i - j|^2 / ((K - 1)^2 beta)), divided by      linear, 1e-4 to 0.02
                its sum over -K < i - j < K; the rest on the diagonal

Step n = 1 ... T here is step n - 1 of a table of betas, at t = n / T.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers.tokens import OfTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenChain(OfTokens):
    """The table above. The absorbing state is one of the K values, as in the paper's images."""

    process_kind: ClassVar[str] = "token_chain"

    num_steps: int = 1000
    kind: Literal["uniform", "absorbing", "gaussian"] = "gaussian"

    def __post_init__(self):
        if self.kind not in ("uniform", "absorbing", "gaussian") or self.num_tokens < 2 or self.num_steps < 2:
            raise UserError(
                "a chain of tokens takes kind 'uniform', 'absorbing' or 'gaussian', num_tokens >= 2 and "
                f"num_steps >= 2, got {self}"
            )

    @property
    def absorbing(self) -> int:
        """m."""
        return self.num_tokens // 2

    def betas(self) -> np.ndarray:
        """beta_1 ... beta_T, float64."""
        steps = np.arange(1, self.num_steps + 1)
        if self.kind == "absorbing":
            return 1.0 / (self.num_steps - steps + 1)
        if self.kind == "gaussian":
            return np.linspace(1e-4, 0.02, self.num_steps)
        curve = np.cos((np.arange(self.num_steps + 1) / self.num_steps + 0.008) / 1.008 * np.pi / 2)
        return np.minimum(1 - curve[1:] / curve[:-1], 0.999)

    def matrix(self, beta: float) -> np.ndarray:
        """Q for one beta, float64 [K, K]."""
        size, identity = self.num_tokens, np.eye(self.num_tokens)
        if self.kind == "uniform":
            return (1 - beta) * identity + beta / size
        if self.kind == "absorbing":
            return (1 - beta) * identity + beta * identity[self.absorbing]
        lengths = np.arange(-(size - 1), size)
        weights = np.exp(-4 * lengths**2 / ((size - 1) ** 2 * beta))
        weights /= weights.sum()
        off = weights[(np.arange(size)[:, None] - np.arange(size)) + size - 1] * (1 - identity)
        return off + np.diag(1 - off.sum(axis=1))

    @functools.cached_property
    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Q_1 ... Q_T, [T, K, K], and Qbar_0 ... Qbar_T, [T + 1, K, K]; computed in float64, kept in float32."""
        cumulative, single = [np.eye(self.num_tokens)], []
        for beta in self.betas():
            single.append(self.matrix(beta))
            cumulative.append(cumulative[-1] @ single[-1])
        return np.array(single, np.float32), np.array(cumulative, np.float32)

    def prior_probabilities(self) -> np.ndarray:
        """The distribution at the end: uniform, or all absorbed."""
        if self.kind == "absorbing":
            return np.eye(self.num_tokens)[self.absorbing]
        return np.full(self.num_tokens, 1.0 / self.num_tokens)

    def prior(self, key: BatchKey, shape: tuple[int, ...]) -> Int[Array, "batch ..."]:
        """Tokens from the distribution at the end of the chain, [batch, *shape]."""
        if self.kind == "absorbing":
            return jnp.full((key.index.shape[0], *shape), self.absorbing, jnp.int32)
        return jnp.minimum((key.uniforms(shape) * self.num_tokens).astype(jnp.int32), self.num_tokens - 1)

    def corrupt(self, x0: Int[Array, "batch ..."], step: Int[Array, " batch"], key: BatchKey) -> Array:
        """x_n for n = step, 1 ... T."""
        rows = jnp.asarray(self.matrices[1])[step.reshape(-1, *(1,) * (x0.ndim - 1)), x0]
        return draw_categorical(rows, key)

    def posterior(
        self, xt: Int[Array, "batch ..."], x0_probabilities: Float[Array, "batch ... K"], step: Int[Array, "*batch"]
    ) -> Float[Array, "batch ... K"]:
        """(2), averaged over a distribution of x0 as in the paper's eq. 4, for n = step >= 1; normalised.

        The average is over the joint q(x_{n-1}, x_n | x0), so an x0 that could not have led to x_n does not count.
        """
        single, cumulative = (jnp.asarray(table) for table in self.matrices)
        step = jnp.broadcast_to(step, xt.shape[:1]).reshape(-1, *(1,) * (xt.ndim - 1))
        into = jnp.swapaxes(single, 1, 2)[jnp.maximum(step - 1, 0), xt]  # Q_n[., x_n]
        earlier = jnp.einsum("b...k,bkj->b...j", x0_probabilities, cumulative[jnp.maximum(step.reshape(-1) - 1, 0)])
        joint = into * earlier
        return joint / jnp.maximum(jnp.sum(joint, axis=-1, keepdims=True), 1e-30)


def draw_categorical(probabilities: Float[Array, "batch ... K"], key: BatchKey) -> Int[Array, "batch ..."]:
    """One draw from every distribution, by inverting its distribution function."""
    cumulative = jnp.cumsum(probabilities, axis=-1)
    u = key.uniforms(probabilities.shape[1:-1]) * cumulative[..., -1]
    return jnp.minimum(jnp.sum(u[..., None] >= cumulative, axis=-1), probabilities.shape[-1] - 1).astype(jnp.int32)
