"""Inception-v3 as trained in 2015, the network behind every published FID.

Szegedy et al. 2015 (arXiv 1512.00567), in the variant of the graph `classify_image_graph_def.pb`: batch normalisation
with eps 1e-3, average pools that do not count the padding, a maximum pool in the last block, 1008 classes. Modules have
the names that ports of its weights use.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIZE = 299
SPATIAL_CHANNELS = 7  # channels of the 17 x 17 map that sFID uses (Nash et al. 2021)

_average = functools.partial(nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
_largest = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
_halve = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation with stored statistics, rectifier."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 d"]:
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        mean, bias = (self.param(name, zeros, (self.features,)) for name in ("mean", "bias"))
        variance, scale = (self.param(name, ones, (self.features,)) for name in ("variance", "scale"))
        return nn.relu((x - mean) * (scale * jax.lax.rsqrt(variance + 1e-3)) + bias)


class Block(nn.Module):
    """Several branches applied to the same input and concatenated.

    Attributes:
      branches: the layers of each branch in order, (name, features, kernel). The last entry may be a tuple of two
        layers: both receive the branch's output so far, and their results are concatenated.
      pool: the pooling in front of the last branch; if that branch has no layer, it is the pool alone.
      stride: stride of the last layer of every branch.
    """

    branches: tuple
    pool: str
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> tuple[Float[Array, "n h2 w2 d"], Float[Array, "n h2 w2 e"]]:
        pools = {"average": _average, "largest": _largest, "halve": _halve}
        results = []
        for i, layers in enumerate(self.branches):
            y = pools[self.pool](x) if i == len(self.branches) - 1 else x
            for j, layer in enumerate(layers):
                last = j == len(layers) - 1
                forks = (layer,) if isinstance(layer[0], str) else layer
                y = jnp.concatenate([self._layer(fork, last)(y) for fork in forks], axis=-1)
            results.append(y)
        return jnp.concatenate(results, axis=-1), results[0]

    def _layer(self, layer: tuple, last: bool) -> ConvBN:
        name, features, kernel = layer
        down = self.stride if last else 1
        return ConvBN(features, kernel, down, "SAME" if down == 1 else "VALID", name=name)


def _a(pool_features: int) -> Block:
    return Block(
        (
            (("branch1x1", 64, (1, 1)),),
            (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
            (("branch_pool", pool_features, (1, 1)),),
        ),
        "average",
    )


def _b() -> Block:
    double = (("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3)))
    return Block(((("branch3x3", 384, (3, 3)),), double, ()), "halve", stride=2)


def _c(width: int) -> Block:
    wide, high = (1, 7), (7, 1)
    return Block(
        (
            (("branch1x1", 192, (1, 1)),),
            (("branch7x7_1", width, (1, 1)), ("branch7x7_2", width, wide), ("branch7x7_3", 192, high)),
            (
                ("branch7x7dbl_1", width, (1, 1)),
                ("branch7x7dbl_2", width, high),
                ("branch7x7dbl_3", width, wide),
                ("branch7x7dbl_4", width, high),
                ("branch7x7dbl_5", 192, wide),
            ),
            (("branch_pool", 192, (1, 1)),),
        ),
        "average",
    )


def _d() -> Block:
    seven = (
        ("branch7x7x3_1", 192, (1, 1)),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, (3, 3)),
    )
    return Block(((("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))), seven, ()), "halve", stride=2)


def _e(pool: str) -> Block:
    def fork(name):
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return Block(
        (
            (("branch1x1", 320, (1, 1)),),
            (("branch3x3_1", 384, (1, 1)), fork("branch3x3_2")),
            (("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
            (("branch_pool", 192, (1, 1)),),
        ),
        pool,
    )


_BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("largest"),
}


class InceptionV3(nn.Module):
    """Maps images [n, 299, 299, 3], values (0..255 - 128) / 128, to the features that metrics use."""

    @nn.compact
    def __call__(self, x: Float[Array, "n 299 299 3"]) -> dict[str, Float[Array, "n d"]]:
        """Returns
        - `pooled` [n, 2048]: pool_3;
        - `spatial` [n, 17 * 17 * 7]: the first channels of the first branch of Mixed_6d, rows first;
        - `log_probabilities` [n, 1008], of logits without their bias, as the Inception Score takes them.
        """
        x = ConvBN(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvBN(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(ConvBN(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = ConvBN(80, name="Conv2d_3b_1x1")(x)
        x = _halve(ConvBN(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, block in _BLOCKS.items():
            x, first = block.clone(name=name, parent=self)(x)
            if name == "Mixed_6d":
                spatial = first[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        pooled = x.mean(axis=(1, 2))
        kernel = self.param("fc", nn.initializers.lecun_normal(), (2048, 1008))
        logits = jnp.matmul(pooled, kernel, precision=jax.lax.Precision.HIGHEST)
        return {"pooled": pooled, "spatial": spatial, "log_probabilities": jax.nn.log_softmax(logits)}
