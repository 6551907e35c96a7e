"""Reading the text of compiled programs: loops, products, groups of devices."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from siglip_jax.planning.hlo import Module, Shape, replica_group

LOOP = """HloModule loop, is_scheduled=true

%body (p: (s32[], f32[8,16], f32[16,16])) -> (s32[], f32[8,16], f32[16,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %step)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=2
  %y = f32[8,16]{1,0:T(8,128)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}, /*index=2*/f32[16,16]{1,0:T(8,128)S(1)}) tuple(%next, %y, %w)
}

%cond (p.1: (s32[], f32[8,16], f32[16,16])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)S(1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(9)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=DIRECTION
}

ENTRY %main (a: f32[8,16], b: f32[16,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %b = f32[16,16]{1,0:T(8,128)S(1)} parameter(1)
  %zero = s32[]{:T(128)} constant(START)
  %start = s32[]{:T(128)} copy(%zero)
  %first = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}, f32[16,16]{1,0:T(8,128)S(1)}) tuple(%start, %a, %b)
  %loop = (s32[], f32[8,16], f32[16,16]) while(%first), condition=%cond, body=%body
  ROOT %out = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("start", "step", "direction", "runs"),
    [(0, 1, "LT", 9), (2, 1, "LT", 7), (0, 2, "LT", 5), (0, 1, "LE", 10), (3, 3, "LT", 2)],
)
def test_loops_are_multiplied_out(start, step, direction, runs):
    text = LOOP.replace("START", str(start)).replace("STEP", str(step)).replace("DIRECTION", direction)
    module = Module.parse(text)
    assert module.entry == "main" and not module.uncounted
    assert module.flops("main") == runs * 2 * 8 * 16 * 16 and not module.uncounted


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    text = LOOP.replace("constant(9)", "parameter(1)").replace("STEP", "1").replace("START", "0")
    module = Module.parse(text)
    assert module.flops("main") == 2 * 8 * 16 * 16 and module.uncounted == {"loop"}
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"12"}}')
    assert Module.parse(known).flops("main") == 12 * 2 * 8 * 16 * 16


def convolution(x, w, **options):
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 2), "padding": "VALID"},
        {"window_strides": (1, 1), "padding": ((1, 1), (0, 0)), "rhs_dilation": (2, 1)},
        # Most of what the window meets are gaps, as where a TPU writes a product with batch dimensions.
        {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (3, 3)},
        {"window_strides": (1, 2), "padding": "SAME", "feature_group_count": 2},
    ],
    ids=str,
)
def test_a_convolution_counts_what_lies_on_data(options):
    features = 4 // options.get("feature_group_count", 1)
    shapes = (5, 10, 8, 4), (3, 3, features, 6)
    text = jax.jit(lambda x, w: convolution(x, w, **options)).lower(*map(jnp.zeros, shapes)).compile().as_text()
    assert " convolution(" in text
    module = Module.parse(text)
    alone = {key: value for key, value in options.items() if key != "feature_group_count"}
    met = convolution(jnp.ones((1, 10, 8, 1)), jnp.ones((3, 3, 1, 1)), **alone)  # how many products each position sums
    assert module.flops(module.entry) == 2 * 5 * features * 6 * int(met.sum())


def test_shapes_have_their_bytes():
    sizes = {"f32": 24, "bf16": 12, "pred": 6, "s8": 6, "u4": 3, "f8e4m3fn": 6, "token": 0}
    assert {kind: Shape(kind, (2, 3)).bytes for kind in sizes} == sizes


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, use_global_device_ids=true", (0, 2)),
        ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", (0, 4)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}, x", (0, 4)),
        ("source_target_pairs={{0,1},{1,0}}", ()),
    ],
)
def test_groups_of_devices(text, group):
    assert replica_group(f", channel_id=3, {text}") == group


KERNEL = """HloModule jit_step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUz","cost_estimate":{"flops":"33554432","transcendentals":"131072","bytes_accessed":"524288"}}}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %kernel)
}

%test (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(27)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  ROOT %loop = (s32[], f32[8]{0}) while(%a), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"27"}}
}
"""  # noqa: E501


def test_a_kernel_counts_what_it_says_of_itself_in_every_iteration():
    module = Module.parse(KERNEL)
    assert module.flops(module.entry) == 27 * 33554432
    assert [i.kernel_flops for i in module.computations["body"] if i.opcode == "custom-call"] == [33554432]
