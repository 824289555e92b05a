"""A picture depends on its seed, prompt and number, but not on the batch or on the devices."""

import jax
import numpy as np
import pytest

from diffusion_jax.pipelines import Pipeline
from tests.pipelines.cases import GOLDEN


@pytest.fixture(scope="module")
def pipe():
    """A pipeline with a sampler that draws noise in every step."""
    return Pipeline.from_pretrained(GOLDEN / "sd15", scheduler="euler_ancestral")


def test_a_picture_is_the_same_in_any_batch_and_on_any_number_of_devices(pipe):
    call = {"num_inference_steps": 2, "output_type": "np", "seed": 5, "height": 16, "width": 16}
    assert len(jax.local_devices()) == 8
    many = pipe(["a red fox", "snow", "an old city"], num_images_per_prompt=3, **call).images  # nine over eight devices
    one = pipe("snow", first_image=2, **call).images  # on one device
    assert many.shape == (9, 16, 16, 3)
    np.testing.assert_allclose(one[0], many[5], atol=2e-5)
    assert np.abs(many[3] - many[4]).max() > 0.01  # another number gives another picture
    assert np.abs(many[0] - many[3]).max() > 1e-4  # another prompt gives another picture
