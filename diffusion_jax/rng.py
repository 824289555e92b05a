"""Random numbers that depend only on (seed, stream name, step, position in the global batch).

No draw depends on how many devices, hosts or microbatches share the work: every example of a batch has its own key,
derived from its position in the *global* batch. A `BatchKey` is that family of keys.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.counter_prng import counter_key, counter_normal, is_counter_key


def stream_key(seed: int, stream: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of one named random stream at one step."""
    return jax.random.fold_in(fold_name(jax.random.key(seed), stream), step)


def fold_name(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Fold a name into a key; the same name gives the same key on every machine and Python."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key", "index"], meta_fields=["size"])
@dataclasses.dataclass(frozen=True)
class BatchKey:
    """The keys of the examples at positions `index` of a global batch of `size` examples."""

    key: Key[Array, ""]
    index: Int[Array, " batch"]
    size: int

    @classmethod
    def create(cls, key: Key[Array, ""], size: int) -> "BatchKey":
        """Keys of a whole global batch."""
        return cls(key, jnp.arange(size), size)

    def fold_in(self, name: str) -> "BatchKey":
        """An independent family of keys for the use called `name`."""
        return dataclasses.replace(self, key=fold_name(self.key, name))

    def at_step(self, step: int | Int[Array, ""]) -> "BatchKey":
        """An independent family of keys for one step of a loop, for example of a sampler."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, step))

    def counter_based(self) -> "BatchKey":
        """The same family for the cheap generator of `counter_prng.py`, for noise in every step of a loop."""
        return dataclasses.replace(self, key=counter_key(self.key))

    def per_example(self) -> Key[Array, " batch"]:
        """One key per example."""
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.key, self.index)

    def normal(self, shape: tuple[int, ...], dtype=None) -> Float[Array, " batch ..."]:
        """Unit Gaussian of shape [batch, *shape]; with `counter_based` keys it is computed in float32."""
        if is_counter_key(self.key):
            draws = jax.vmap(lambda key: counter_normal(key, shape))(self.per_example())
            return draws if dtype is None else draws.astype(dtype)
        return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(self.per_example())

    def uniforms(self, shape: tuple[int, ...]) -> Float[Array, " batch ..."]:
        """Independent uniform variates in [0, 1) of shape [batch, *shape]."""
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(self.per_example())

    def uniform(self, dtype=None) -> Float[Array, " batch"]:
        """Independent uniform variates in [0, 1), one per example."""
        return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(self.per_example())

    def stratified(self, dtype=None) -> Float[Array, " batch"]:
        """Uniform variates (i + u_i) / size: one in each of `size` equal strata, each jittered by itself."""
        u = self.uniform(dtype)
        return (self.index.astype(u.dtype) + u) / self.size

    def antithetic(self, dtype=None) -> Float[Array, " batch"]:
        """Uniform variates in pairs u, 1 - u: positions 2 k and 2 k + 1 of the global batch share a draw."""
        u = dataclasses.replace(self, index=self.index // 2).uniform(dtype)
        return jnp.where(self.index % 2 == 0, u, 1 - u)

    def low_discrepancy(self, dtype=None) -> Float[Array, " batch"]:
        """Uniform variates (u + i / size) mod 1 with one shared u (Kingma et al. 2021, app. I.1)."""
        shared = jax.random.uniform(self.key, (), dtype)
        return (shared + self.index.astype(shared.dtype) / self.size) % 1.0
