"""A very small class-conditional denoiser, and random batches for it."""

import numpy as np
import optax
import pytest

from diffusion_jax import models, training
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model

BATCH = 16


@pytest.fixture
def make_trainable():
    """Build a Trainable with a tiny network of the named kind, conditioned on classes or by `conditioning`."""

    def make(network="unet", *, conditioning=None, **network_arguments):
        classes = 3 if conditioning is None else 0
        small = {
            "unet": {"base_channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
            "dit": {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 2},
        }.get(network, {})
        module = models.MODELS.build(
            {"name": network, **small, **network_arguments}, image_size=4, image_channels=1, num_classes=classes
        )
        model = Model(
            data=DataSpec(kind="pixels", shape=(4, 4, 1)),
            network=module,
            process=Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="scaled_t"),
            conditioning=conditioning or Conditioning(parts=(Label(num_classes=3),), dropout={("label",): 0.2}),
        )
        return training.Trainable(model=model, objective=OBJECTIVES.build("flow_matching"))

    return make


@pytest.fixture
def batch():
    """Make batch number `step` of 16 random images in three classes, on the host."""

    def make(step=0):
        rng = np.random.default_rng(step)
        image = rng.uniform(-1, 1, (BATCH, 4, 4, 1)).astype(np.float32)
        return {"data": image, "label": rng.integers(0, 3, BATCH).astype(np.int32)}

    return make


@pytest.fixture
def make_step():
    """Make the train step of a Trainable, and the function that creates its first state."""

    def make(trainable, *, accumulation=1, learning_rate=1e-2, ema=None, optimizer="sgd", seed=0):
        import jax

        ema = ema or training.EmaConfig(decays=(0.9,))
        rate = optax.constant_schedule(learning_rate)
        transformation = training.make_optimizer({"name": optimizer}, learning_rate=rate, clip_norm=1.0)
        step = training.make_train_step(
            trainable,
            transformation,
            ema=ema,
            learning_rate=rate,
            batch_size=BATCH,
            seed=seed,
            accumulation=accumulation,
        )

        def init():
            return training.create_state(
                lambda: trainable.init_params(jax.random.key(seed), models.init_params), transformation, ema
            )

        return step, init

    return make
