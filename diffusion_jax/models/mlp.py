"""A residual multilayer perceptron over all values of an example: for points in the plane and other small data.

Time and class enter every block as a scale and a shift, as in `dit.py`. The data keep the shape of an image, [batch,
height, width, channels]: two numbers per example are an image of size 1 with two channels.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import Dropout, TimeMLP, at_least_float32, sinusoidal_embedding
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS

_zeros = nn.initializers.zeros


@MODELS.register(
    "mlp",
    example={"image_size": 2, "image_channels": 2, "num_classes": 3, "features": 16, "depth": 2, "dropout": 0.5},
)
class MLP(Network, kw_only=True):
    """Input layer, `depth` residual blocks of two layers, output layer that starts at zero.

    Attributes:
      features: width of the hidden layers.
      depth: residual blocks.
      dropout: rate inside the blocks; active if dropout keys are given.
      out_channels: channels of the output; None means image_channels.
    """

    features: int = 128
    depth: int = 3
    dropout: float = 0.0
    out_channels: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """See `Network`."""
        self.check_inputs(x, time, conditions)
        if x.shape[1:3] != self.image_shape[:2]:
            raise UserError(f"MLP is built for {self.image_size} x {self.image_size} images, got {x.shape[1:3]}")
        vector = self._embed(time, "time")
        if self.num_times == 2:
            vector += self._embed(time - conditions["second_time"], "interval")
        if self.num_classes:
            table = nn.Embed(self.num_classes + 1, self.features, dtype=self.dtype, name="label")
            vector += table(conditions["label"])
        vector = nn.silu(vector)

        h = nn.Dense(self.features, dtype=self.dtype, name="in")(x.reshape(len(x), -1))
        for block in range(self.depth):
            film = nn.Dense(2 * self.features, dtype=self.dtype, name=f"modulation_{block}")(vector)
            scale, shift = jnp.split(film, 2, axis=-1)
            r = nn.LayerNorm(dtype=self.dtype, name=f"norm_{block}")(h) * (1 + scale) + shift
            r = nn.silu(nn.Dense(self.features, dtype=self.dtype, name=f"dense_{block}_0")(r))
            r = Dropout(rate=self.dropout, name=f"dropout_{block}")(r, dropout_keys)
            h += nn.Dense(self.features, dtype=self.dtype, name=f"dense_{block}_1")(r)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm_out")(h))
        channels = self.out_channels or self.image_channels
        out = nn.Dense(x.shape[1] * x.shape[2] * channels, dtype=self.dtype, kernel_init=_zeros, name="out")(h)
        return out.reshape(*x.shape[:-1], channels).astype(at_least_float32(out.dtype))

    def _embed(self, time: Float[Array, " batch"], name: str) -> Float[Array, "batch features"]:
        waves = sinusoidal_embedding(time, self.features, max_period=10_000.0)
        return TimeMLP(features=self.features, kernel_init=nn.initializers.lecun_normal(), name=name)(waves)
