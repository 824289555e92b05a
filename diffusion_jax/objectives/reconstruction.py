"""The loss that trains a first stage (Rombach et al. 2022, section 3.1; Esser et al. 2021, arXiv:2012.09841).

    y          = decoder(encoder(x))
    distortion = l1 |x - y| + l2 (x - y)^2 + perceptual LPIPS(x, y)                                           (1)
    L_codec    = distortion + penalty_weight penalty - factor weight(lambda) D(y)                             (2)
    L_D        = factor (relu(1 - D(x)) + relu(1 + D(sg(y)))) / 2                                             (3)
    lambda     = |d distortion / d w| / (|d D(y) / d w| + 1e-4), at most 1e4                                  (4)

D is a patch discriminator, w the kernel of the decoder's last convolution, and sg stops the gradient; factor is 0
before the step `adversarial_start` and 1 afterwards. Both losses are minimised at once: (2) treats D's parameters as
constant and (3) the codec's, so that one gradient of their sum serves both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.domains import NOT_NEGATIVE, SIZE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import init_lpips, lpips
from diffusion_jax.models.autoencoders import Discriminator, LearnedCodec
from diffusion_jax.registry import Registry

Images = Float[Array, "batch height width channels"]
Metrics = dict[str, Float[Array, ""]]
_MOST = 1e4  # bound of lambda
_LEAST_SIDE = 16  # least side of pictures for LPIPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """The loss of a first stage; its fields are the weights of (1) and (2).

    Attributes:
      l1: weight of the mean absolute error.
      l2: weight of the mean squared error.
      penalty_weight: weight of the codec's penalty: 1e-6 in the paper for Gaussian latents, 1 for quantised ones.
      perceptual: weight of LPIPS; 0: its network is not built.
      vgg, lpips: files of LPIPS's weights (`diffusion_jax.weights.read_lpips`).
      adversarial: weight of the discriminator; 0: there is none.
      adversarial_start: step from which the discriminator counts.
      adaptive: whether the discriminator's weight is multiplied by lambda.
      discriminator_channels: channels of the discriminator's first convolution.
      discriminator_depth: how often the discriminator halves the resolution.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # neither targets, a teacher, nor another network's features

    l1: Annotated[float, NOT_NEGATIVE] = 1.0
    l2: Annotated[float, NOT_NEGATIVE] = 0.0
    penalty_weight: Annotated[float, NOT_NEGATIVE] = 1e-6
    perceptual: Annotated[float, NOT_NEGATIVE] = 0.0
    vgg: str = ""
    lpips: str = ""
    adversarial: Annotated[float, NOT_NEGATIVE] = 0.0
    adversarial_start: Annotated[int, Bounds(low=0, high=10**9)] = 0
    adaptive: bool = True
    discriminator_channels: Annotated[int, SIZE] = 64
    discriminator_depth: Annotated[int, Bounds(low=1, high=8)] = 3

    def __post_init__(self):
        if self.l1 == self.l2 == self.perceptual == 0:
            raise UserError("objective reconstruction gives no difference a weight: set l1, l2 or perceptual above 0")

    @property
    def discriminator(self) -> Discriminator | None:
        """The network of (3); None if its weight is 0."""
        if not self.adversarial:
            return None
        return Discriminator(base_channels=self.discriminator_channels, depth=self.discriminator_depth)

    @property
    def reads_lpips(self) -> bool:
        """Whether its state is LPIPS's network, whose weights are in its files `vgg` and `lpips`."""
        return bool(self.perceptual)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise UserError if pictures of this shape are too small for the networks of the loss."""
        side = min(shape[:2])
        least = 3 * 2**self.discriminator_depth
        if self.adversarial and side < least:
            raise UserError(
                f"a discriminator that halves {self.discriminator_depth} times needs {least}x{least} pixels, but the "
                f"data has {shape[0]}x{shape[1]}: set objective.discriminator_depth lower, or objective.adversarial=0"
            )
        if self.perceptual and (side < _LEAST_SIDE or shape[2] not in (1, 3)):
            raise UserError(
                f"LPIPS needs {_LEAST_SIDE}x{_LEAST_SIDE} pixels or more and 1 or 3 channels, but the data is "
                f"{list(shape)}: set objective.perceptual=0"
            )

    def init_params(self, key: Key[Array, ""], shape: tuple[int, int, int]) -> PyTree:
        """Parameters of the discriminator for pictures of this shape; None if there is none."""
        if self.discriminator is None:
            return None
        return self.discriminator.init(key, jnp.zeros((1, *shape)))["params"]

    def init_state(self) -> PyTree:
        """LPIPS's parameters, with random values instead of those from files; None without LPIPS."""
        return init_lpips(jax.random.key(0)) if self.perceptual else None

    def update_state(self, state: PyTree, observed: Any) -> PyTree:
        """The state after a step: the same."""
        return state

    def distortion(self, x: Images, y: Images, state: PyTree) -> tuple[Float[Array, ""], Metrics]:
        """(1), a mean over numbers and examples, and its terms."""
        terms = {"l1": jnp.mean(jnp.abs(x - y)), "mse": jnp.mean(jnp.square(x - y))}
        total = self.l1 * terms["l1"] + self.l2 * terms["mse"]
        if self.perceptual:
            terms["lpips"] = jnp.mean(lpips(state, x, y))
            total += self.perceptual * terms["lpips"]
        return total, terms

    def loss(
        self,
        codec: LearnedCodec,
        params: Mapping[str, PyTree],
        discriminator: PyTree,
        x: Images,
        keys: Key[Array, " batch"] | None,
        *,
        step: Int[Array, ""] | int,
        state: PyTree = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """(2) + (3) to differentiate, and the values to log: `loss`, its terms, and the codec's own.

        Args:
          codec: the first stage.
          params: its parameters.
          discriminator: parameters of the discriminator; None leaves out (3) and its part of (2), as validation does.
          x: pictures in [-1, 1].
          keys: one for each example, for the noise of the latents; None: no noise.
          step: optimizer steps done.
          state: LPIPS's parameters.
        """
        made = codec.autoencode(params, x, keys)
        distortion, terms = self.distortion(x, made.x, state)
        total = distortion + self.penalty_weight * jnp.mean(made.penalty)
        metrics = {**terms, **made.observed, "distortion": distortion}
        if discriminator is not None:
            fooling, weight = self._adversarial(codec, params, discriminator, x, made, state)
            factor = jnp.where(step >= self.adversarial_start, 1.0, 0.0)
            real, fake = (self._logits(discriminator, v) for v in (x, jax.lax.stop_gradient(made.x)))
            hinge = 0.5 * jnp.mean(jax.nn.relu(1.0 - real)) + 0.5 * jnp.mean(jax.nn.relu(1.0 + fake))
            total += factor * (weight * fooling + hinge)
            metrics |= {"adversarial_weight": factor * weight, "fooling": fooling, "hinge": hinge}
        return total, {"loss": total, **metrics}

    def _logits(self, discriminator: PyTree, x: Images) -> Array:
        return self.discriminator.apply({"params": discriminator}, x)

    def _adversarial(self, codec, params, discriminator, x, made, state) -> tuple[Array, Array]:
        """-D(y), whose gradient only changes the codec, and its weight, which has no gradient."""
        frozen = jax.lax.stop_gradient(discriminator)

        def fooling(y: Images) -> Array:
            return -jnp.mean(self._logits(frozen, y))

        if not self.adaptive:
            return fooling(made.x), jnp.float32(self.adversarial)
        y, hidden, own = jax.lax.stop_gradient((made.x, made.hidden, params))
        kernel = own["decoder"]["conv_out"]["kernel"]
        _, pull = jax.vjp(lambda kernel: codec.last_layer(kernel, own, hidden), kernel)
        norms = []
        for term in (lambda y: self.distortion(x, y, state)[0], fooling):
            (gradient,) = pull(jax.grad(term)(y).astype(hidden.dtype))
            norms.append(jnp.sqrt(jnp.sum(jnp.square(gradient))))
        ratio = jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, _MOST)
        return fooling(made.x), self.adversarial * jax.lax.stop_gradient(ratio)


RECONSTRUCTIONS: Registry[ReconstructionLoss] = Registry("objective of a first stage")
RECONSTRUCTIONS.register("reconstruction")(ReconstructionLoss)
