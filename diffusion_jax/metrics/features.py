"""Feature spaces: they map images to the vectors whose distances metrics measure.

A space computes `Features` of uint8 images, and its `settings` record what the numbers depend on. The features of one
image do not depend on the other images.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped, UInt8

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.inception import SIZE, InceptionV3
from diffusion_jax.metrics.resizing import resizer
from diffusion_jax.models.encoders import VisionTransformer

Images = UInt8[np.ndarray, "n height width channels"]
_REMEMBERED = 4  # sets of images whose features are kept: samples, training images, held-out images, one more


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """The features of n images; None for those that the space does not compute.

    Attributes:
      pooled: one vector per image.
      spatial: a vector that still depends on the layout.
      log_probabilities: log-probabilities of the classes of the space's network.
    """

    pooled: Float[np.ndarray, "n d"]
    spatial: Float[np.ndarray, "n e"] | None = None
    log_probabilities: Float[np.ndarray, "n classes"] | None = None

    def rows(self, index: Int[np.ndarray, " m"]) -> "Features":
        """The features of some images, in the order of `index`."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Features(**{name: None if part is None else part[index] for name, part in parts.items()})


def digests_of(images: Images) -> Shaped[np.ndarray, " n"]:
    """A hash of each image's bytes; sorting by it gives an order that does not depend on the given one."""
    return np.array([hashlib.sha256(image.tobytes()).digest() for image in images], "S32")


class FeatureSpace(Protocol):
    """See the module docstring."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the numbers depend on, for the record: at least `features`, the name of the space."""

    def __call__(self, images: Images) -> Features:
        """The features of images.

        Raises:
          UserError: images that the space cannot take.
        """


@dataclasses.dataclass(frozen=True)
class PixelFeatures:
    """The pixels themselves, in [-1, 1]: the simplest space, without a network."""

    settings = {"features": "pixels"}  # noqa: RUF012 - a constant

    def __call__(self, images: Images) -> Features:
        flat = images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0
        return Features(pooled=flat, spatial=flat, log_probabilities=np.asarray(jax.nn.log_softmax(flat)))


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkFeatures:
    """A network with its parameters, on all devices of this process.

    Attributes:
      apply: (params, images as float32 0..255) -> {"pooled": ..., ...}, for a batch of any size.
      params: its parameters.
      settings: settings for the record.
      channels: channels that it takes; images of one channel are repeated, others are refused.
      batch_size: images per batch.
    """

    apply: Callable[[PyTree, jax.Array], Mapping[str, jax.Array]]
    params: PyTree
    settings: Mapping[str, Any]
    channels: int
    batch_size: int = 64

    @functools.cached_property
    def _placed(self) -> tuple[Callable, PyTree, jax.sharding.Sharding]:
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        run = jax.jit(self.apply, in_shardings=(everywhere, divided), out_shardings=divided)
        return run, jax.device_put(self.params, everywhere), divided

    @functools.cached_property
    def _known(self) -> dict[bytes, Features]:
        return {}

    def __call__(self, images: Images) -> Features:
        digests = digests_of(images)
        order = np.argsort(digests, kind="stable")
        key = hashlib.sha256(repr(images.shape).encode() + digests[order].tobytes()).digest()
        found = self._known.pop(key, None) or self._extract(images, order)
        self._known[key] = found  # the newest is last
        if len(self._known) > _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        return found.rows(np.argsort(order, kind="stable"))

    def _extract(self, images: Images, order: Int[np.ndarray, " n"]) -> Features:
        """The features in this order. The images may be on disk; one batch at a time is read into memory."""
        if images.shape[-1] not in (1, self.channels):
            raise UserError(
                f"the features {self.settings['features']} need images with {self.channels} channels, "
                f"not {images.shape[-1]}"
            )
        run, params, divided = self._placed
        devices = divided.num_devices
        size = -(-min(self.batch_size, len(images)) // devices) * devices
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, len(images), size):
            part = images[order[first : first + size]]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])  # one shape, one program
            full = np.broadcast_to(full, (*full.shape[:-1], self.channels)).astype(np.float32)
            values = run(params, jax.device_put(full, divided))
            parts.append({name: np.asarray(value, np.float32)[: len(part)] for name, value in values.items()})
        return Features(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


@dataclasses.dataclass(frozen=True)
class Convention:
    """How images are prepared for Inception: the resizer, and the offset and scale of values 0..255."""

    resize: str
    shift: float = 128.0
    scale: float = 128.0


CONVENTIONS = {
    "tf": Convention("tf1_bilinear"),
    "pytorch_fid": Convention("torch_bilinear", 127.5, 127.5),
    "clean": Convention("pil_bicubic"),
}
"""tf: the convention of the TF-2015 graph, and so of ADM, NVIDIA, torch-fidelity and most published numbers."""


def inception_features(
    params: PyTree, *, fingerprint: str, convention: str = "tf", batch_size: int = 64
) -> NetworkFeatures:
    """The space of FID.

    Args:
      params: parameters of `InceptionV3`.
      fingerprint: hash of the file that they come from, for the record.
      convention: one of `CONVENTIONS`.
      batch_size: images per batch.

    Raises:
      UserError: unknown convention.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"unknown convention {convention!r} of Inception's input; known: {', '.join(CONVENTIONS)}")
    chosen = CONVENTIONS[convention]
    resize = resizer(chosen.resize)

    def apply(params: PyTree, images: jax.Array) -> Mapping[str, jax.Array]:
        x = resize(images, SIZE)
        return InceptionV3().apply({"params": params}, (x - chosen.shift) / jnp.float32(chosen.scale))

    settings = {"features": "inception_v3_2015", "weights_sha256": fingerprint, "resizer": chosen.resize}
    return NetworkFeatures(apply, params, settings, channels=3, batch_size=batch_size)


DINOV2_SIZE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of R, G and B
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def dinov2_features(
    network: VisionTransformer, params: PyTree, *, fingerprint: str, batch_size: int = 32
) -> NetworkFeatures:
    """The space of FD-DINOv2: the class token of 224 x 224 images (Stein et al. 2023, arXiv:2306.04675).

    Images are resized by the bicubic filter on floats, as in EDM2's code; Stein et al. round to whole numbers
    afterwards.

    Args:
      network: DINOv2, with its `params`.
      fingerprint: hash of the file that they come from, for the record.
      batch_size: images per batch.
    """
    apply = _encoded(network, DINOV2_SIZE, *IMAGENET, unit=False)
    name = f"dinov2_{network.depth}x{network.width}"
    settings = {"features": name, "weights_sha256": fingerprint, "resizer": "pil_bicubic"}
    return NetworkFeatures(apply, params, settings, channels=3, batch_size=batch_size)


def dinov2_patches(
    network: VisionTransformer, params: PyTree, *, fingerprint: str, grid: int, batch_size: int = 32
) -> NetworkFeatures:
    """DINOv2's vectors of grid x grid patches, as REPA uses them; `pooled` is [n, grid^2 * width].

    The arguments are those of `dinov2_features`; images are resized to `grid` patches per side.
    """
    encode = _encoded(network, grid * network.patch_size, *IMAGENET, unit=False, patches=True)

    def apply(params: PyTree, images: jax.Array) -> Mapping[str, jax.Array]:
        found = encode(params, images)["pooled"]
        return {"pooled": found.reshape(len(found), -1)}

    name = f"dinov2_{network.depth}x{network.width}_patches"
    settings = {"features": name, "weights_sha256": fingerprint, "resizer": "pil_bicubic"}
    return NetworkFeatures(apply, params, settings, channels=3, batch_size=batch_size)


def clip_features(
    network: VisionTransformer, params: PyTree, *, fingerprint: str, batch_size: int = 32
) -> NetworkFeatures:
    """The space of CMMD and the CLIP score: CLIP's image embeddings, of length 1 (Jayasumana et al. 2024).

    Args:
      network: CLIP's image encoder, with its `params`.
      fingerprint: hash of the file that they come from, for the record.
      batch_size: images per batch.
    """
    apply = _encoded(network, network.image_size, *_CLIP, unit=True)
    name = f"clip_{network.depth}x{network.width}_{network.image_size}"
    settings = {"features": name, "weights_sha256": fingerprint, "resizer": "pil_bicubic"}
    return NetworkFeatures(apply, params, settings, channels=3, batch_size=batch_size)


def _encoded(
    network: VisionTransformer, size: int, mean: tuple, deviation: tuple, *, unit: bool, patches: bool = False
) -> Callable:
    resize = resizer("pil_bicubic")

    def apply(params: PyTree, images: jax.Array) -> Mapping[str, jax.Array]:
        x = (resize(images, size) / 255.0 - jnp.asarray(mean)) / jnp.asarray(deviation)
        with jax.default_matmul_precision("highest"):
            states = network.apply({"params": params}, x)
            found = states.last[:, 1:] if patches else states.vector
        return {"pooled": found / jnp.linalg.norm(found, axis=-1, keepdims=True) if unit else found}

    return apply
