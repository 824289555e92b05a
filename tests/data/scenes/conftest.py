"""Fixtures with scenes of every size, made once."""

import numpy as np
import pytest

from diffusion_jax.data.scenes import SceneOptions, SceneSource


@pytest.fixture(scope="session", params=[24, 32, 48, 64])
def source(request):
    """The training split at one size, with up to four objects."""
    return SceneSource(SceneOptions(size=request.param, max_objects=4), "train")


@pytest.fixture(scope="session")
def described(source):
    """Scene graphs, captions and requirements of 300 scenes."""
    return source.described(np.arange(300))
