"""Operations and traffic read from compiled programs: closed forms, and the group notations of TPU programs."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.parallel import hlo, hlo_text


def program(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.Program(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_in_nested_loops_are_multiplied_out():
    def outer(x, w):
        inner = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=5)[0]
        return jnp.sin(inner)

    found = program(lambda x, w: jax.lax.scan(lambda c, _: (outer(c, w), None), x, length=7)[0], (32, 16), (16, 16))
    assert found.flops == 7 * 5 * 2 * 32 * 16 * 16
    assert found.unknown_loops == 0


def test_a_loop_that_ends_by_its_data_is_said_to_be_unknown():
    found = program(lambda x: jax.lax.while_loop(lambda c: c.sum() < 10, lambda c: 2 * c + 1, x), (4,))
    assert found.unknown_loops == 1


@pytest.mark.parametrize(
    ("inputs", "size", "stride", "low", "spread"), [(8, 3, 1, 1, 1), (8, 3, 2, 0, 1), (4, 3, 1, 2, 2)]
)
def test_padding_and_holes_are_no_operations(inputs, size, stride, low, spread):
    outputs = 6
    dilated = {spread * i for i in range(inputs)}
    expected = sum(o * stride + k - low in dilated for o, k in itertools.product(range(outputs), range(size)))
    found = hlo_text.valid_pairs(
        inputs=inputs, outputs=outputs, size=size, stride=stride, low=low, spread=spread, holes=1
    )
    assert found == expected


GROUPS = {
    "replica_groups={{0,1,2,3},{4,5,6,7}}": 4,
    "replica_groups=[2,8]<=[16]": 8,
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}": 2,
    "replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}": 4,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_bytes_that_a_ring_sends(groups):
    text = f"""
%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[8,100]) -> f32[8,100] {{
  %x = f32[8,100]{{1,0:T(8,128)}} parameter(0)
  ROOT %r = f32[8,100]{{1,0:T(8,128)}} all-reduce(%x), channel_id=1, {groups}, to_apply=%sum
}}
"""
    size = GROUPS[groups]
    assert hlo.Program(text, 16).collectives == {
        "all-reduce": hlo.Collective(1, 3200, round(2 * 3200 * (size - 1) / size))
    }


def test_what_lies_in_fast_memory_is_no_traffic():
    text = """
ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} negate(%x)
  ROOT %z = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%y)
}
"""
    assert hlo.Program(text).traffic == 2 * 8 * 128 * 2


def test_a_loop_over_stacked_weights_reads_each_once():
    layers, size = 64, 256
    found = program(
        lambda x, w: jax.lax.scan(lambda c, one: (jnp.tanh(c @ one), None), x, w)[0], (8, size), (layers, size, size)
    )
    stack = 4 * layers * size * size
    assert stack < found.traffic < 4 * stack  # a slice is read, written, and read by the product, instead of 64 stacks


@pytest.mark.parametrize("groups", ["feature_group_count", "batch_group_count"])
def test_grouped_convolutions(groups):
    """Operations of a depthwise convolution (4 channels, 3x1 filters), and of its gradient with 4 batch groups."""
    left = "8,1,1,4" if groups == "feature_group_count" else "8,1,4,1"
    text = f"""
ENTRY %main (x: f32[{left}], w: f32[3,1,1,4]) -> f32[6,1,1,4] {{
  %x = f32[{left}]{{3,2,1,0}} parameter(0)
  %w = f32[3,1,1,4]{{3,2,1,0}} parameter(1)
  ROOT %y = f32[6,1,1,4]{{3,2,1,0}} convolution(%x, %w), window={{size=3x1}}, dim_labels=01bf_01io->01bf, {groups}=4
}}
"""
    assert hlo.Program(text).flops == 2 * 6 * 3 * 4


def test_a_loop_whose_start_an_outer_loop_carries_through():
    """The inner counter starts at a constant element of the outer loop's state, as the TPU compiler writes it."""
    text = """
inner_cond (p: (s32[], f32[4,4])) -> pred[] {
  %p = (s32[], f32[4,4]) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

inner_body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[4,4]) tuple(%next, %y)
}

outer_cond (p: (s32[], f32[4,4], s32[])) -> pred[] {
  %p = (s32[], f32[4,4], s32[]) parameter(0)
  %limit = s32[] constant(3)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

outer_body (p: (s32[], f32[4,4], s32[])) -> (s32[], f32[4,4], s32[]) {
  %p = (s32[], f32[4,4], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4] get-tuple-element(%p), index=1
  %zero = s32[] get-tuple-element(%p), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %start = (s32[], f32[4,4]) tuple(%zero, %x)
  %loop = (s32[], f32[4,4]) while(%start), condition=%inner_cond, body=%inner_body
  %y = f32[4,4] get-tuple-element(%loop), index=1
  ROOT %t = (s32[], f32[4,4], s32[]) tuple(%next, %y, %zero)
}

ENTRY main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,4], s32[]) tuple(%zero, %x, %zero)
  %loop = (s32[], f32[4,4], s32[]) while(%start), condition=%outer_cond, body=%outer_body
  ROOT %y = f32[4,4] get-tuple-element(%loop), index=1
}
"""
    found = hlo.Program(text)
    assert found.unknown_loops == 0
    assert found.flops == 3 * 5 * 2 * 4**3


def test_an_attention_kernel_is_two_products_and_its_metadata_ends_nothing():
    text = """
ENTRY main (q: bf16[2,3,256,64], k: bf16[2,3,512,64]) -> bf16[2,3,256,64] {
  %q = bf16[2,3,256,64] parameter(0)
  %k = bf16[2,3,512,64] parameter(1)
  %splash_mha_fwd.1 = bf16[2,3,256,64] custom-call(%q, %k, %k), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={}
  ROOT %d = bf16[2,3,256,256] dot(%splash_mha_fwd.1, %q), lhs_contracting_dims={3}, rhs_contracting_dims={3}
}
"""
    assert hlo.Program(text).flops == 2 * 2 * 2 * 3 * 256 * 512 * 64 + 2 * (2 * 3 * 256 * 256) * 64
