"""Properties that every registered network must have; a new network is tested once it is registered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, count_parameters, example_inputs, init_params, is_frozen
from diffusion_jax.specs import ConditionSpec

BATCH = 4
SMALL = {"image_size": 4, "image_channels": 2, "num_classes": 3}
TEXT = {**SMALL, "context_channels": 6, "pooled_channels": 5}
TRANSFORMER = {"name": "dit", **TEXT, "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
TOLD_A_TEXT = {
    "unet, text": {
        "name": "unet", **TEXT, "base_channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (2,), "guidance_channels": 4,
    },
    "dit, text": {**TRANSFORMER, "guidance_channels": 4},
    "dit, joint text": {**TRANSFORMER, "context_by": "joint"},
}  # fmt: skip


# Networks whose blocks are tested here through others, or that other tests compare with published outputs.
SHARED = {"adm", "ldm_unet", "ncsnpp", "vdm", "unet, text", "dit, text", "conditional_unet", "joint_transformer"}


def example(name):
    """The smallest instance of a registered network, or of its text-conditioned variant."""
    return MODELS.build(TOLD_A_TEXT[name]) if name in TOLD_A_TEXT else MODELS.example(name)


class Subject:
    """A registered network with random parameters, inputs, and a compiled call."""

    def __init__(self, name):
        self.module = example(name)
        self.init_params = init_params(self.module, jax.random.key(0))
        draw = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda p: np.float32(p + 0.2 * draw.standard_normal(p.shape)), jax.device_get(self.init_params)
        )
        self.x = np.float32(draw.standard_normal((BATCH, *self.module.image_shape)))
        self.time = np.linspace(0.1, 3.0, BATCH, dtype=np.float32)
        self.conditions = {
            name: np.arange(BATCH, dtype=np.int32) % self.module.num_classes
            if name == "label"
            else np.float32(draw.standard_normal(null.shape))
            for name, null in example_inputs(self.module, BATCH)[2].items()
            if name != "second_time"
        }
        self.apply = jax.jit(functools.partial(apply, self.module))

    def __call__(self, params=None, x=None, time=None, conditions=None, dropout_keys=None):
        return self.apply(
            self.params if params is None else params,
            self.x if x is None else x,
            self.time if time is None else time,
            self.conditions if conditions is None else conditions,
            dropout_keys,
        )


def apply(module, params, *inputs):
    return module.apply({"params": params}, *inputs)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SHARED else name for name in (*MODELS, *TOLD_A_TEXT)],
)
def subject(request):
    return Subject(request.param)


def half(tree, which):
    return jax.tree.map(lambda leaf: leaf[: BATCH // 2] if which == 0 else leaf[BATCH // 2 :], tree)


def test_output(subject):
    output = subject()
    assert output.shape == subject.x.shape
    assert output.dtype == jnp.float32
    assert bool(jnp.isfinite(output).all())
    assert float(jnp.abs(output).max()) > 1e-3


def test_parameters_may_be_numpy_arrays_bound_in_a_program(subject):
    bound = jax.jit(lambda *inputs: apply(subject.module, subject.params, *inputs))
    np.testing.assert_allclose(bound(subject.x, subject.time, subject.conditions), subject(), atol=1e-4)


def test_initial_output_is_zero(subject):
    if subject.module.zero_at_init:
        assert float(jnp.abs(subject(params=subject.init_params)).max()) < 1e-6


def test_params_are_float32_and_counted(subject):
    leaves = jax.tree_util.tree_leaves_with_path(subject.init_params)
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype("float32")}
    assert count_parameters(subject.module, frozen=True) == sum(leaf.size for _, leaf in leaves)
    assert count_parameters(subject.module) == sum(leaf.size for path, leaf in leaves if not is_frozen(path))


def test_init_depends_on_key_and_not_on_sharding(subject):
    mesh = jax.make_mesh((2,), ("data",))
    last_axis = jax.sharding.PartitionSpec
    shardings = jax.tree.map(
        lambda p: jax.NamedSharding(
            mesh, last_axis(*[None] * (p.ndim - 1), "data") if p.ndim and p.shape[-1] % 2 == 0 else last_axis()
        ),
        subject.init_params,
    )
    init = jax.jit(lambda key: init_params(subject.module, key), out_shardings=shardings)
    same, other = init(jax.random.key(0)), init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, subject.init_params)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (same, other)), strict=True))


def test_gradients_are_finite(subject):
    def loss(params, x):
        return jnp.mean((subject.apply(params, x, subject.time, subject.conditions, None) - 1.0) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(subject.params, subject.x)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert bool((leaf != 0).any()) != is_frozen(path), path


def test_vmap_is_batching(subject):
    stacked = jax.tree.map(
        lambda leaf: leaf.reshape(2, BATCH // 2, *leaf.shape[1:]), (subject.x, subject.time, subject.conditions)
    )
    batched = jax.jit(jax.vmap(functools.partial(apply, subject.module), in_axes=(None, 0, 0, 0)))
    output = batched(subject.params, *stacked)
    np.testing.assert_allclose(output.reshape(subject.x.shape), subject(), atol=1e-5)


def test_jvp_is_the_finite_difference(subject, x64):
    module = subject.module.clone(dtype=jnp.float64)
    params, x, time = jax.tree.map(np.float64, (subject.params, subject.x[:1], subject.time[:1]))
    conditioning = jax.tree.map(lambda leaf: leaf[:1], subject.conditions)
    draw = np.random.default_rng(1)
    tangents = jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw.standard_normal(leaf.shape) * (not is_frozen(path)), (params, x, time)
    )

    @jax.jit
    def run(params, x, time):
        return module.apply({"params": params}, x, time, conditioning)

    _, derivative = jax.jvp(run, (params, x, time), tangents)
    step = 1e-6
    ahead, behind = (
        run(*jax.tree.map(lambda p, v, s=sign: p + s * step * v, (params, x, time), tangents)) for sign in (1, -1)
    )
    assert derivative.dtype == jnp.float64
    difference = (ahead - behind) / (2 * step)
    assert float(jnp.abs(derivative - difference).max() / jnp.abs(derivative).max()) < 1e-6


def test_bfloat16_computes_nearly_the_same(subject):
    module = subject.module.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    output = jax.jit(module.apply)({"params": subject.params}, subject.x, subject.time, subject.conditions)
    expected = subject()
    assert output.dtype == jnp.float32
    assert float(jnp.abs(output - expected).max() / jnp.abs(expected).max()) < 0.1
    assert float(jnp.abs(output - expected).max()) > 0


def test_examples_are_independent(subject):
    changed = jax.tree.map(np.copy, (subject.x, subject.time, subject.conditions))
    for leaf in jax.tree.leaves(changed):
        leaf[1:] = np.roll(leaf[1:], 1, axis=0)
    np.testing.assert_allclose(subject(x=changed[0], time=changed[1], conditions=changed[2])[0], subject()[0])


def test_dropout_belongs_to_the_example(subject):
    keys = jax.random.split(jax.random.key(7), BATCH)
    whole = subject(dropout_keys=keys)
    parts = [
        subject(None, *half((subject.x, subject.time, subject.conditions), i), dropout_keys=half(keys, i))
        for i in (0, 1)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    np.testing.assert_array_equal(subject(dropout_keys=keys), whole)
    if getattr(subject.module, "dropout", 0.0):
        other = jax.random.split(jax.random.key(8), BATCH)
        assert float(jnp.abs(subject(dropout_keys=other) - whole).max()) > 1e-3
        assert float(jnp.abs(subject() - whole).max()) > 1e-3


def test_time_and_label_matter(subject):
    expected = subject()
    assert float(jnp.abs(subject(time=subject.time + 1.0) - expected).max()) > 1e-3
    if subject.module.num_classes:
        null = subject(conditions={**subject.conditions, "label": np.full(BATCH, subject.module.num_classes, np.int32)})
        assert bool((jnp.abs(null - expected).max((1, 2, 3)) > 1e-3).all())


def test_slots(subject):
    classes, takes = subject.module.num_classes, subject.module.takes
    assert ("label" in takes) == bool(classes)
    if classes:
        assert takes["label"] == ConditionSpec(dtype="int32", num_values=classes + 1)
    unconditional = subject.module.clone(num_classes=0)
    assert set(unconditional.takes) == set(takes) - {"label"}
    assert unconditional.clone(num_times=2).takes["second_time"].role == "told"
    for name, value in example_inputs(subject.module, 3)[2].items():
        assert value.dtype == takes[name].dtype
        assert takes[name].fits(value.shape[1:])
    shape = jax.eval_shape(unconditional.init_with_output, jax.random.key(0), *example_inputs(unconditional, 3))[0]
    assert shape.shape == (3, *subject.module.image_shape)


def test_wrong_inputs_are_named(subject):
    x, time, conditions = example_inputs(subject.module, 2)
    wrong = [
        (x[..., :1], time, conditions, "images"),
        (x[0], time, conditions, "images"),
        (x, time[:1], conditions, "one time per example"),
        (x, time, {**conditions, "weather": time}, "takes the conditions"),
        *((x, time, {**conditions, name: value[:1]}, f"takes {name} as") for name, value in conditions.items()),
        *((x, time, {**conditions, name: value[..., None]}, f"takes {name} as") for name, value in conditions.items()),
    ]
    for *inputs, message in wrong:
        with pytest.raises(UserError, match=message):
            subject.module.apply({"params": subject.params}, *inputs)


def test_is_a_static_argument(subject):
    again = subject.module.clone()
    assert again == subject.module
    assert hash(again) == hash(subject.module)
    assert subject.module.clone(num_classes=7) != subject.module
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, x):
        traces.append(module)
        return x + module.image_channels

    for module in (subject.module, again):
        run(module, 1.0)
    assert len(traces) == 1


def test_exports(subject):
    inputs = (subject.params, subject.x, subject.time, subject.conditions)
    exported = jax.export.export(jax.jit(functools.partial(apply, subject.module)))(*inputs)
    np.testing.assert_allclose(exported.call(*inputs), subject(), atol=1e-6)


def test_a_network_of_two_times_sees_both(subject):
    """A network with two times has more parameters than one with a single time, and depends on the second time."""
    module = subject.module.clone(num_times=2)
    params = init_params(module, jax.random.key(0))
    assert count_parameters(module) > count_parameters(subject.module)
    draw = np.random.default_rng(3)
    params = jax.tree.map(lambda p: np.float32(p + 0.2 * draw.standard_normal(p.shape)), jax.device_get(params))
    run = jax.jit(functools.partial(apply, module))
    outputs = [
        run(params, subject.x, subject.time, {**subject.conditions, "second_time": np.float32(scale * subject.time)})
        for scale in (1.0, 0.2)
    ]
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-4
    with pytest.raises(UserError, match="second_time"):
        module.apply({"params": params}, subject.x, subject.time, subject.conditions)


def test_padding_of_a_context_changes_nothing(subject, x64):
    """Masked padding of a context changes nothing, compared in float64 to exclude rounding errors."""
    if not any(spec.has_mask for spec in subject.module.takes.values()):
        pytest.skip("no slot of any length")
    module = subject.module.clone(dtype=jnp.float64)
    params, x, time = jax.tree.map(np.float64, (subject.params, subject.x, subject.time))
    conditions = {n: v if v.dtype.kind == "i" else np.float64(v) for n, v in subject.conditions.items()}
    context = conditions["context"]
    padded = np.concatenate([context, np.full((BATCH, 3, context.shape[-1]), 7.0)], axis=1)
    mask = np.arange(padded.shape[1])[None].repeat(BATCH, 0) < context.shape[1]
    run = jax.jit(functools.partial(apply, module))

    def masked(mask):
        return run(params, x, time, {**conditions, "context": padded, "context_mask": mask})

    np.testing.assert_allclose(masked(mask), run(params, x, time, conditions), atol=1e-12)
    assert float(jnp.abs(masked(np.ones_like(mask)) - masked(mask)).max()) > 1e-3
    for wrong in (mask[:, :2], mask.astype(np.float32)):
        with pytest.raises(UserError, match="takes context_mask as bool"):
            module.apply({"params": params}, x, time, {**conditions, "context": padded, "context_mask": wrong})
