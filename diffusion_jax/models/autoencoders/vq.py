"""The first stage whose latents are rows of a table (van den Oord et al. 2017, arXiv:1711.00937; VQGAN, 2012.09841).

    h = encoder(x),  q = the nearest row of the table,  x' = decoder(q),  d x' / d h = d x' / d q

Its penalty is |sg(h) - q|^2 + commitment |h - sg(q)|^2, a mean over the latents, where sg stops the gradient. As in
latent diffusion h is diffused, and the decoder begins with the table: it removes sampling errors smaller than half the
distance between two rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from diffusion_jax.models.autoencoders.autoencoder import Latents
from diffusion_jax.models.autoencoders.codec import CODECS
from diffusion_jax.models.autoencoders.learned import LearnedCodec, Reconstruction
from diffusion_jax.rng import fold_name

TABLE = "codebook"


@CODECS.register("vq", example={"size": "small_f2", "channels": (8, 8), "data_channels": 2, "num_codes": 16})
@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ(LearnedCodec):
    """Quantised latents; see `LearnedCodec` for the other fields.

    Attributes:
      num_codes: rows of the table.
      commitment: weight of the term that draws the encoder to the table, relative to the opposite term.
    """

    num_codes: int = 8192
    commitment: float = 0.25

    def init_params(self, key: Key[Array, ""]) -> dict[str, PyTree]:
        shape, bound = (self.num_codes, self.latent_channels), 1.0 / self.num_codes
        table = jax.random.uniform(fold_name(key, TABLE), shape, minval=-bound, maxval=bound)
        return {**super().init_params(key), TABLE: table}

    def autoencode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Reconstruction:
        """See `LearnedCodec`; logs `commitment`, the mean squared distance to the table, and `codes_used`, the number
        of equally frequent rows that would be as varied as the batch's."""
        h = self._encoded(params, x, keys)
        index = self.nearest(params, h)
        q = params[TABLE][index]
        distance = jnp.mean(jnp.square(jax.lax.stop_gradient(h) - q), axis=(1, 2, 3))
        towards = jnp.mean(jnp.square(h - jax.lax.stop_gradient(q)), axis=(1, 2, 3))
        straight = h + jax.lax.stop_gradient(q - h)
        y, hidden = self._made(params, straight)
        share = jnp.zeros((self.num_codes,)).at[index.reshape(-1)].add(1.0 / index.size)
        used = jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-20))))
        observed = {"commitment": jnp.mean(towards), "codes_used": used}
        return Reconstruction(x=y, hidden=hidden, penalty=distance + self.commitment * towards, observed=observed)

    def nearest(self, params: PyTree, h: Latents) -> Int[Array, "batch rows columns"]:
        """The row of the table that is nearest to each unscaled latent."""
        table = params[TABLE]
        return jnp.argmin(jnp.sum(table**2, axis=1) - 2 * h @ table.T, axis=-1)

    def _quantised(self, params: PyTree, h: Latents) -> Latents:
        return params[TABLE][self.nearest(params, h)]
