"""Schedulers reproduce every state of the reference runs from the stored network outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.scheduling import Scheduler
from diffusion_jax.samplers import sample
from tests.pipelines.cases import INDEX, NAMES, StoredKey, arrays, draws, last
from tests.samplers.test_golden_trajectories import GOLDEN as SAMPLERS_GOLDEN
from tests.samplers.test_golden_trajectories import mixture_denoiser, reference_states

NOT_PLAIN = ("inpaint4", "sd3_inpaint", "sd3_skip", "ideogram4")  # the state or guidance changes between steps
PLAIN = [name for name in NAMES if not any(part in name for part in NOT_PLAIN)]


def scheduler(name):
    said = INDEX["cases"][name]["components"]["scheduler"]
    return Scheduler.read({"_class_name": said["class"], **said["config"]})


def outputs(name):
    """The guided outputs of all network calls."""
    case, found = INDEX["cases"][name], arrays(name)
    call, made = case["call"], []
    scale = call.get("guidance_scale", 7.5)
    count = len({key for key in found if key.startswith("m") and key.endswith("_out")})
    stored = [found[f"m{i}_out"] for i in range(count)]
    if "true_cfg_scale" in call:
        pairs = zip(stored[::2], stored[1::2], strict=True)
        return [b + call["true_cfg_scale"] * (a - b) for a, b in pairs]
    latents = found["s0_latents"] if "s0_latents" in found else found["latents"]
    for out in stored:
        out = out[:, : latents.shape[1]] if latents.ndim == 3 else out
        times = len(out) // len(latents)
        if times == 3:
            both, image, nothing = np.split(out, 3)
            out = nothing + scale * (both - image) + call["image_guidance_scale"] * (image - nothing)
        elif times == 2:
            nothing, both = np.split(out, 2)
            out = nothing + scale * (both - nothing)
            if call.get("guidance_rescale"):
                axes = tuple(range(1, out.ndim))
                ratio = both.std(axes, ddof=1, keepdims=True) / out.std(axes, ddof=1, keepdims=True)
                out = out * (call["guidance_rescale"] * ratio + 1 - call["guidance_rescale"])
        made.append(out)
    return made


def part_of(name):
    """The range of transitions that a case takes."""
    call = INDEX["cases"][name]["call"]
    steps = call["num_inference_steps"]
    if "denoising_end" in call:
        return lambda told: (0, int((told >= round(1000 - call["denoising_end"] * 1000)).sum()))
    if "denoising_start" in call:
        return lambda told: (len(told) - int((told < round(1000 - call["denoising_start"] * 1000)).sum()), len(told))
    if "strength" in call:
        kept = steps * call["strength"]
        kept = kept if name.startswith(("sd3", "flux")) else int(kept)  # these two round the skipped steps
        return lambda told: (int(max(steps - kept, 0)), len(told))
    return lambda told: (0, len(told))


def walk_of(name):
    call, found = INDEX["cases"][name]["call"], arrays(name)
    steps, given, tokens = call["num_inference_steps"], None, 0
    if name.startswith("flux"):
        given, tokens = np.linspace(1, 1 / steps, steps), found["s0_latents"].shape[1]
    return scheduler(name).walk(steps, part=part_of(name), eta=call.get("eta"), tokens=tokens, sigmas=given)


@pytest.mark.parametrize("name", PLAIN)
def test_what_the_network_is_told(name):
    """The timestep of every call is equal up to float32 rounding."""
    found, walk = arrays(name), walk_of(name)
    told = [float(found[f"m{i}_timestep"].reshape(-1)[0]) for i in range(len(outputs(name)))]
    if name.startswith("flux"):
        times = 2 if name == "flux_true_cfg" else 1
        told = [1000 * float(found[f"m{i * times}_timestep"][0]) for i in range(len(outputs(name)))]
    if "pndm" in name:
        told = told if "img2img" in name else [told[0], *told[2:]]  # the second step is evaluated twice
    np.testing.assert_allclose(walk.told, told, rtol=2e-6)


FAST = ("sd15_dpmpp2m_karras", "sd15_euler_a", "sd15_unipc", "sd15_img2img_pndm", "sd15_lcm_w", "sd2_euler_v",
        "sd2_zsnr_trailing", "sdxl_refiner_last40", "flux_schnell")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in PLAIN
        if "s0_latents" in arrays(name)
    ],
)
def test_every_state(name):
    """Stored outputs and draws give every state within the tolerance of the latents."""
    found, walk, made = arrays(name), walk_of(name), outputs(name)
    drawn = [noise for noise, where in draws(name) if where.startswith("scheduling_")]
    states = [last(found[f"s{i}_latents"]) for i in range(len(found)) if f"s{i}_latents" in found]
    asked = iter(made)
    scale = walk.grid.alphas if walk.unscaled else np.ones_like(walk.grid.alphas)
    if "latents" in found and "denoising_start" not in INDEX["cases"][name]["call"]:
        start = walk.start * last(found["latents"])
    else:
        start = last(found["m0_in_sample" if "m0_in_sample" in found else "m0_in_hidden_states"])[: len(states[0])]
        start = start[..., : states[0].shape[-1]]
    denoiser = walk.process.denoiser(lambda x, time: jnp.asarray(last(next(asked))))
    key = StoredKey(jax.random.key(0), jnp.arange(1), 1, np.stack([*drawn, np.zeros_like(states[0])]))
    with jax.disable_jit():
        result = sample(walk.sampler, denoiser, walk.grid, jnp.asarray(start), key, return_trajectory=True)
    visited = np.asarray(result.trajectory)[1:] / scale[1:].reshape(-1, *(1,) * (states[0].ndim))
    if walk.sampler.nfe(9) == 10:
        states = states[1:]  # the first try of PNDM
    assert len(visited) == len(states)
    for i, (ours, theirs) in enumerate(zip(visited, states, strict=True)):
        error = np.abs(ours - theirs).max()
        assert error <= INDEX["cases"][name]["tolerance"]["latents"], f"state {i}: {error}"


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "linspace"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
# Trajectories of diffusers' classes on a mixture in the plane, from tests/golden/samplers.
OTHERS = {
    "ddim_linear": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "euler_karras": {"_class_name": "EulerDiscreteScheduler", **SD, "use_karras_sigmas": True},
    "heun_karras": {"_class_name": "HeunDiscreteScheduler", **SD, "use_karras_sigmas": True},
    "dpmpp_3m": {"_class_name": "DPMSolverMultistepScheduler", **SD, "solver_order": 3},
    "dpm_2m_eps": {"_class_name": "DPMSolverMultistepScheduler", **SD, "algorithm_type": "dpmsolver",
                   "final_sigmas_type": "sigma_min"},
    "dpmpp_2s": {"_class_name": "DPMSolverSinglestepScheduler", **SD},
    "deis": {"_class_name": "DEISMultistepScheduler", **SD},
    "lms": {"_class_name": "LMSDiscreteScheduler", **SD},
    "flow_euler_shift3": {**FLOW, "shift": 3.0},
    "flow_heun": {"_class_name": "FlowMatchHeunDiscreteScheduler"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OTHERS))
@pytest.mark.usefixtures("x64")
def test_other_classes_on_a_mixture(name):
    golden, walk = np.load(SAMPLERS_GOLDEN / f"{name}.npz"), Scheduler.read(OTHERS[name]).walk(10)
    reference = reference_states(name, golden)
    scale = walk.grid.alphas[:, None, None] if walk.unscaled else np.ones((1, 1, 1))
    start = jnp.asarray(reference[0] * scale[0])
    denoiser = mixture_denoiser(golden, walk.process.schedule)
    found = sample(walk.sampler, denoiser, walk.grid, start, return_trajectory=True).trajectory
    found = np.asarray(found) / scale
    np.testing.assert_allclose(found, reference[: len(found)], rtol=0, atol=2e-4)
    assert len(reference) - len(found) in (0, 1)  # the last step of diffusers may not move


def test_a_student_of_trajectories_takes_the_steps_that_it_was_taught():
    walk = Scheduler.read({"_class_name": "TCDScheduler"}).walk(4, eta=0.0)
    np.testing.assert_array_equal(walk.told, [999, 759, 499, 259])
    assert not walk.sampler.stochastic
    assert Scheduler.read({"_class_name": "TCDScheduler"}).walk(4).sampler.stochastic


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, "thresholding"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample"),
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "eta_of_the_future": 2}, "eta_of_the_future"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow_prediction"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "stochastic_sampling"),
    ],
)
def test_a_setting_that_is_not_here_is_an_error_that_names_it(config, named):
    with pytest.raises(UserError, match=named):
        Scheduler.read(config)
