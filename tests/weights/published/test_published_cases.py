"""Text encoders and first stages equal every call that the reference pipelines made (tests/golden)."""

import json
import re

import jax
import numpy as np
import pytest

from tests.weights.published.parts import GOLDEN, read, require_written_back

PIPELINES = GOLDEN / "pipelines"
INDEX = json.loads((PIPELINES / "index.json").read_text())["cases"]
CASES = ("sd15_img2img", "sd2_ddim_v", "sdxl_euler", "sd3_flow", "flux_dev", "ideogram4")


def last(x):
    """Move channels to the last axis."""
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES)
def test_text_encoders_and_first_stage_of_a_pipeline(case):
    arrays, tolerance = np.load(PIPELINES / "cases" / f"{case}.npz"), INDEX[case]["tolerance"]
    folder = PIPELINES / INDEX[case]["components"]["pipeline"]

    def near(found, name, group):
        np.testing.assert_allclose(found, arrays[name], atol=tolerance[group], rtol=0, err_msg=name)

    for number in sorted({name[2] for name in arrays if re.fullmatch(r"te\d_c\d_input_ids", name)}):
        module, params, _ = read(folder / f"text_encoder{'' if number == '1' else f'_{number}'}")
        calls = sorted({name[: len("te1_c0")] for name in arrays if name.startswith(f"te{number}_c")})
        tokens = np.concatenate([arrays[f"{call}_input_ids"] for call in calls])
        states = jax.jit(lambda params, tokens, module=module: module.apply({"params": params}, tokens))(params, tokens)
        for row, call in enumerate(calls):
            found = (
                {"last": states}
                if isinstance(states, jax.Array)
                else {
                    "last": states.last,
                    "penultimate": states.hidden[-2],
                    "pooler_output": states.pooled,
                    "text_embeds": states.projected,
                }
            )
            for name, value in found.items():
                if f"{call}_{name}" in arrays:
                    near(value[row : row + 1], f"{call}_{name}", "text_encoder")

    codec, params, _ = read(folder / "vae")
    decoded = jax.jit(lambda params, h: codec._decoded(params, h)[0])(params, last(arrays["vae_dec0_in"]))
    near(decoded.transpose(0, 3, 1, 2), "vae_dec0_out", "vae_decode")
    if "vae_enc0_in" in arrays:
        moments = jax.jit(codec._moments)(params, last(arrays["vae_enc0_in"]))
        for value, name in zip(moments, ("vae_enc0_mean", "vae_enc0_logvar"), strict=True):
            near(value.transpose(0, 3, 1, 2), name, "vae_encode")


@pytest.mark.parametrize(
    "part",
    [
        "sd15/text_encoder",
        "sdxl/text_encoder_2",
        "sd3/text_encoder_3",
        "sd3/vae",
        "flux/text_encoder_2",
        "ideogram4/vae",
    ],
)
def test_their_tensors_are_written_back_byte_for_byte(part):
    require_written_back(PIPELINES / part, read(PIPELINES / part)[1])
