"""Properties of every registered task, with every guidance rule and projection, on a small model with random
parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import Conditioning, Label, Source
from diffusion_jax.data.transforms import to_uint8, to_unit_range
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.autoencoders import Values
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import GUIDANCE, INVERSIONS, PROJECTIONS, SAMPLERS
from diffusion_jax.samplers.guidance import ClassifierFree, towards
from diffusion_jax.schedulers import GRIDS, Parameterization, TokenProcess
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model
from diffusion_jax.tasks import TASKS, Edit, Inpaint, Request, Setting

SIZE = 4
PIXELS = DataSpec(kind="pixels", shape=(SIZE, SIZE, 1))
EDM = Parameterization.build(schedule="edm", prediction="edm", time_input="quarter_log_sigma")
NETWORK = MODELS.build({"name": "mlp", "features": 16, "depth": 1}, image_size=SIZE, image_channels=1, num_classes=3)
MODEL = Model(data=PIXELS, network=NETWORK, process=EDM, conditioning=Conditioning(parts=(Label(num_classes=3),)))
EXAMPLES = 6
ORDINARY = [name for name in TASKS if name != "instruct"]  # needs a network that sees a picture beside its input


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda: MODEL.init_params(jax.random.key(0), init_params))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def others(raw, plain):
    return {
        "worse": lambda xt, t: plain(0.9 * xt, t),
        "classifier": towards(EDM.schedule, lambda x, t: -(x**2).sum((1, 2, 3))),
    }


def setting(**changes):
    grid = GRIDS.build("uniform")(EDM.schedule, 4)
    fields = {"model": MODEL, "sampler": SAMPLERS.build("euler"), "grid": grid, "others": others, **changes}
    return Setting(**fields)


def pixels():
    return np.random.default_rng(1).integers(0, 256, (EXAMPLES, SIZE, SIZE, 1)).astype(np.uint8)


def request(**changes):
    mask = np.zeros((EXAMPLES, SIZE, SIZE, 1), np.float32)
    mask[:, 1:3, 1:] = 1
    latents = np.random.default_rng(2).standard_normal((EXAMPLES, SIZE, SIZE, 1)).astype(np.float32)
    labels = {"label": np.arange(EXAMPLES, dtype=np.int32) % 3}
    return Request(**{"asked": labels, "image": to_unit_range(pixels()), "mask": mask, "latents": latents, **changes})


def done(task, params, *, given=None, rows=slice(None), seed=0, **changes):
    """The results for some of the examples, each at its position in the global batch."""
    index = jnp.arange(EXAMPLES)[rows]
    given = jax.tree.map(lambda leaf: leaf[rows], request() if given is None else given)
    frame = setting(**changes)
    run = jax.jit(lambda p, g, i: task(frame, p, g, BatchKey(jax.random.key(seed), i, EXAMPLES)))
    return np.asarray(run(params, given, index))


@pytest.mark.parametrize("name", ORDINARY)
def test_same_key_same_result_in_any_split_of_the_batch(name, params):
    task = TASKS.example(name)
    task.check(setting())
    whole = done(task, params)
    assert whole.shape == (EXAMPLES, SIZE, SIZE, 1)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(done(task, params), whole)
    parts = [done(task, params, rows=rows) for rows in (slice(0, 1), slice(1, 4), slice(4, None))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert task.network_evaluations(setting()) > 0


@pytest.mark.parametrize("name", ORDINARY)
def test_a_task_reads_what_it_says(name, params):
    """A request with only the fields in `needs` gives the same result as a full request."""
    task = TASKS.example(name)
    nothing = dict.fromkeys(("image", "mask", "latents", "source"))
    own = {field: getattr(request(), field) for field in task.needs}
    np.testing.assert_array_equal(done(task, params, given=request(**{**nothing, **own})), done(task, params))


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_asked_counts(name, params):
    task, nothing = TASKS.example(name), request(asked=None)
    assert np.abs(done(task, params, given=nothing) - done(task, params)).max() > 1e-3


def test_an_instruction_changes_the_picture_that_is_beside_the_input():
    """The result depends on the picture, on the instruction and on the example's position; each of two scales has an
    effect."""
    unet = {"name": "unet", "base_channels": 8, "channel_multipliers": (1,), "attention_resolutions": ()}
    network = MODELS.build(
        unet, image_size=SIZE, image_channels=1, num_classes=3, num_res_blocks=1, extra_channels=1, image_role="asked"
    )
    told = Conditioning(parts=(Label(num_classes=3), Source(shape=(SIZE, SIZE, 1))))
    model = Model(data=PIXELS, network=network, process=EDM, conditioning=told)
    shapes = jax.eval_shape(lambda: model.init_params(jax.random.key(0), init_params))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    rule = GUIDANCE.build({"name": "two_scales", "scale": 2.0, "image_scale": 1.5})
    task, how = TASKS.example("instruct"), {"model": model, "guidance": rule}
    task.check(setting(**how))
    assert task.network_evaluations(setting(**how)) == 4 * 3
    with pytest.raises(UserError, match="needs a network that sees the picture to be edited"):
        task.check(setting())
    frame = setting(**how)
    run = jax.jit(lambda g, i: task(frame, params, g, BatchKey(jax.random.key(0), i, EXAMPLES)))
    index, whole = jnp.arange(EXAMPLES), request()
    made = np.asarray(run(whole, index))
    back = np.arange(EXAMPLES)[::-1]
    turned = np.asarray(run(jax.tree.map(lambda leaf: leaf[back], whole), index[back]))
    np.testing.assert_allclose(turned[back], made, atol=1e-4)
    for changed in (request(image=-whole.image), request(asked={"label": (whole.asked["label"] + 1) % 3})):
        assert np.abs(np.asarray(run(changed, index)) - made).max() > 1e-3


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_outside_the_mask_equal_pixel_by_pixel(name, params):
    task = Inpaint(projection=PROJECTIONS.example(name))
    drawn, source, outside = to_uint8(done(task, params)), pixels(), request().mask == 0
    np.testing.assert_array_equal(drawn[outside], source[outside])
    assert (drawn[~outside] != source[~outside]).mean() > 0.5
    hidden = np.where(outside, source, 0).astype(np.uint8)
    same = done(task, params, given=request(image=to_unit_range(hidden)))
    np.testing.assert_allclose(to_uint8(same), drawn, atol=1)  # the area under the mask is not read


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_every_rule_guides_a_task_and_scale_1_is_neutral(name, params):
    if name == "two_scales":
        with pytest.raises(UserError, match="guides towards 'image' and another condition"):
            setting(guidance=GUIDANCE.example(name)).check()
        return
    rule, plain = GUIDANCE.example(name), done(Inpaint(), params)
    np.testing.assert_array_equal(done(Inpaint(), params, guidance=dataclasses.replace(rule, scale=1.0)), plain)
    if name == "none":
        return
    negative = {"label": np.array([1], np.int32)} if rule.negative else None
    guided = done(Inpaint(), params, guidance=rule, negative=negative)
    assert np.abs(guided - plain).max() > 1e-3
    count = Inpaint().network_evaluations(setting(guidance=rule))
    assert count == 4 * rule.evaluations(("label",)) == 8
    parts = [
        done(Inpaint(), params, guidance=rule, negative=negative, rows=rows) for rows in (slice(0, 2), slice(2, None))
    ]
    np.testing.assert_allclose(np.concatenate(parts), guided, atol=1e-4)


def test_negative_and_null_are_two_things(params):
    away = [
        done(Inpaint(), params, guidance=ClassifierFree(scale=3.0), negative=negative)
        for negative in (None, {"label": np.array([1], np.int32)}, {"label": np.array([3], np.int32)})
    ]
    assert np.abs(away[0] - away[1]).max() > 1e-3
    np.testing.assert_array_equal(away[0], away[2])  # class 3 of 3 is the null class


@pytest.mark.parametrize("name", list(INVERSIONS))
def test_invert_and_from_latents_undo_each_other(name, params):
    inversion = INVERSIONS.build({"name": name, **({"iterations": 30} if name == "ddim" else {})})
    frame = {"sampler": SAMPLERS.build(inversion.sampler), "grid": GRIDS.build("uniform")(EDM.schedule, 12)}
    latents = done(TASKS.build({"name": "invert", "inversion": inversion}), params, **frame)
    back = done(TASKS.example("from_latents"), params, given=request(latents=latents), **frame)
    np.testing.assert_allclose(back, request().image, atol=0.03)
    same = done(Edit(inversion=inversion), params, given=request(source=request().asked), **frame)
    np.testing.assert_allclose(same, request().image, atol=0.03)  # the picture's class equals the requested class
    other = done(
        Edit(inversion=inversion), params, given=request(source={"label": request().asked["label"][::-1]}), **frame
    )
    assert np.abs(other - request().image).max() > 0.01


def test_the_less_strength_the_more_stays(params):
    moved = [
        np.abs(done(TASKS.build({"name": "variation", "strength": s}), params) - request().image).mean()
        for s in (0.3, 1.0)
    ]
    assert moved[0] < moved[1]


@pytest.mark.parametrize("name", ORDINARY)
def test_what_does_not_fit_is_one_clear_line(name):
    task, jumps = TASKS.example(name), setting(sampler=SAMPLERS.build("consistency"))
    tokens = Model(
        data=PIXELS,
        codec=Values(num_values=4),
        network=NETWORK,
        process=TokenProcess(num_tokens=4),
        conditioning=MODEL.conditioning,
    )
    with pytest.raises(UserError, match=f"task {name} needs pixels or latents, but this model diffuses tokens"):
        task.check(setting(model=tokens))
    if name in ("edit", "invert"):
        with pytest.raises(UserError, match="goes back along the flow and needs a denoiser, but sampler Consistency"):
            task.check(jumps)
    else:
        task.check(jumps)


def test_options_that_do_not_fit_are_one_clear_line(params):
    with pytest.raises(UserError, match="sampler Consistency asks a network that jumps"):
        Inpaint(projection=PROJECTIONS.build("pigdm")).check(setting(sampler=SAMPLERS.build("consistency")))
    with pytest.raises(UserError, match="returns along the flow, but sampler DDPM draws noise: use ddim or heun"):
        Edit().check(setting(sampler=SAMPLERS.build("ddpm")))
    with pytest.raises(UserError, match="needs a condition to guide towards: give --label"):
        done(Inpaint(), params, given=request(asked=None), guidance=ClassifierFree(scale=2.0))
    with pytest.raises(UserError, match="strength must be a number above 0 and of at most 1"):
        TASKS.build({"name": "variation", "strength": 0.0})
