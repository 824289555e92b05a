"""A feature space for small data: the last layer of a classifier that was trained on the real images themselves.

Its distances are called `proxy_...`: they rank models on one data set with the same classifier, and cannot be compared
with a FID. The classifier sees no sample of any model. Its test accuracy says how far to trust it. Each feature has
mean 0 and standard deviation 1 over the training images.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import ImageSet
from diffusion_jax.metrics.features import NetworkFeatures


class ProxyClassifier(nn.Module):
    """Three 3x3 convolutions, two of them halving, the mean over space, one hidden layer: the features, 64 numbers.

    Attributes:
      num_classes: classes of the data.
      features: numbers per image.
    """

    num_classes: int
    features: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> dict[str, Array]:
        for width, stride in ((32, 1), (64, 2), (128, 2)):
            x = nn.gelu(nn.Conv(width, (3, 3), (stride, stride))(x))
        x = nn.gelu(nn.Dense(self.features)(x.mean(axis=(1, 2))))
        return {"pooled": x, "log_probabilities": nn.log_softmax(nn.Dense(self.num_classes)(x))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyTraining:
    """How the classifier is trained: Adam with a cosine decay on cross-entropy, random batches, no augmentation."""

    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


def fingerprint(train: ImageSet, how: ProxyTraining) -> str:
    """A hash of everything that the classifier depends on: runs with the same one may be compared."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(how), sort_keys=True).encode())
    for array in (train.images, np.asarray(train.labels, np.int64)):
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def network_of(train: ImageSet) -> ProxyClassifier:
    """The classifier for a data set.

    Raises:
      UserError: images without labels, or of one class.
    """
    if train.labels is None or len(np.unique(train.labels)) < 2:
        raise UserError("proxy features need training images with labels of at least two classes")
    return ProxyClassifier(int(train.labels.max()) + 1)


def train_proxy(train: ImageSet, how: ProxyTraining) -> PyTree:
    """The classifier's parameters, `network`, and `mean` and `std` of its features over the training images.

    Raises:
      UserError: see `network_of`.
    """
    network = network_of(train)
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels, jnp.int32)
    key = jax.random.key(how.seed)
    params = network.init(key, _scaled(images[:1]))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(how.learning_rate, how.steps))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, images: Array, labels: Array, i: Array) -> tuple[PyTree, PyTree]:
        chosen = jax.random.randint(jax.random.fold_in(key, i + 1), (how.batch_size,), 0, len(images))

        def loss(params: PyTree) -> Array:
            logs = network.apply({"params": params}, _scaled(images[chosen]))["log_probabilities"]
            return -jnp.take_along_axis(logs, labels[chosen][:, None], axis=1).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(how.steps):  # no scan: on a CPU, convolutions in a loop run on one thread
        params, state = step(params, state, images, labels, i)
    features = jax.jit(lambda part: network.apply({"params": params}, _scaled(part))["pooled"])
    pooled = np.concatenate([features(images[i : i + 1000]) for i in range(0, len(images), 1000)]).astype(np.float64)
    std = pooled.std(axis=0)
    moments = {"mean": pooled.mean(axis=0), "std": np.where(std > 1e-6 * std.max(), std, 1.0)}  # some are always 0
    return {"network": params, **{name: np.float32(value) for name, value in moments.items()}}


def proxy_shapes(train: ImageSet) -> PyTree:
    """What `train_proxy` returns, as ShapeDtypeStruct."""
    network = network_of(train)
    image = jax.ShapeDtypeStruct((1, *train.images.shape[1:]), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    vector = jax.ShapeDtypeStruct((network.features,), jnp.float32)
    return {"network": params, "mean": vector, "std": vector}


def proxy_features(params: PyTree, train: ImageSet, how: ProxyTraining) -> NetworkFeatures:
    """The feature space of a classifier with these parameters."""
    network = network_of(train)

    def apply(params: PyTree, images: Array) -> Any:
        found = network.apply({"params": params["network"]}, _scaled(images))
        return {**found, "pooled": (found["pooled"] - params["mean"]) / params["std"]}

    settings = {"features": "proxy_classifier", "fingerprint": fingerprint(train, how)}
    return NetworkFeatures(apply, params, settings, channels=train.images.shape[-1], batch_size=512)


def accuracy(space: NetworkFeatures, images: ImageSet) -> float:
    """The share of images that a space's network classifies correctly."""
    return float((space(images.images).log_probabilities.argmax(axis=1) == images.labels).mean())


def _scaled(images: Array) -> Array:
    return images.astype(jnp.float32) / 127.5 - 1.0
