"""IP-Adapters of pipelines give the reference's pictures, with scales, blocks and several pictures."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS
from diffusion_jax.models.cross_attention import CrossAttention
from diffusion_jax.models.image_prompt import attention_shapes
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.pipelines.image_prompts import scales_of
from diffusion_jax.weights.ip_adapter import read_ip_adapter, write_ip_adapter
from diffusion_jax.weights.reading import read_state, write_state
from tests.pipelines.cases import GOLDEN, INDEX, arguments, arrays, last, pipeline
from tests.pipelines.test_adapters import compilations

FILES, ENCODER = GOLDEN / "adapters", GOLDEN / "adapters" / "ip_image_encoder"
BASE, PLUS = FILES / "ip-adapter.safetensors", FILES / "ip-adapter-plus.safetensors"
CALL = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np", "guidance_scale": 3.0, "seed": 4}
RED, BLUE = (Image.new("RGB", (40, 32), colour) for colour in ("red", "blue"))


@pytest.mark.parametrize("name", ["sd15_ip_adapter", pytest.param("sd15_ip_adapter_plus", marks=pytest.mark.slow)])
def test_the_references_pictures(name):
    """The adapter reproduces the reference from prepared pixels in the reference's layout."""
    case, found, pipe = INDEX["cases"][name], arrays(name), pipeline(name)
    call = {**arguments(name), "ip_adapter_image": found["ip_adapter_image"]}
    pipe.load_ip_adapter(GOLDEN / case["components"]["ip_adapter"], image_encoder_folder=ENCODER)
    pipe.set_ip_adapter_scale(case["ip_adapter_scale"])
    made = pipe(**call, return_trajectory=True)
    errors = {"image": (np.abs(made.images - found["image"]).max(), case["tolerance"]["image"])}
    for step in range(4):
        difference = np.abs(made.trajectory[step + 1] - last(found[f"s{step}_latents"])).max()
        errors[f"state {step}"] = difference, case["tolerance"]["latents"]
    print(name, errors)
    assert not {what: pair for what, pair in errors.items() if not pair[0] <= pair[1]}
    pipe.set_ip_adapter_scale(0.0)
    with compilations() as names:
        without = pipe(**call, return_trajectory=True).images
    assert "jit(draw)" not in names, "another scale is the same program"
    pipe.unload_ip_adapter()
    del call["ip_adapter_image"]
    np.testing.assert_array_equal(without, pipe(**call).images)
    other = np.abs(without - found["image"]).max()
    assert abs(other - case["controls"]["scale 0"]) < 1e-3, "as far off as in the reference"


@pytest.fixture(scope="module")
def sd15():
    pipe = Pipeline.from_pretrained(GOLDEN / "sd15", scheduler="euler", image_encoder=ENCODER)
    pipe.load_ip_adapter(FILES, weight_name=BASE.name)
    return pipe


def test_scales_by_block_are_in_the_values(sd15):
    sd15.set_ip_adapter_scale(1.0)
    whole, _ = sd15.image_prompts.told(RED, 1)
    sd15.set_ip_adapter_scale({"up": {"block_1": [0.0, 0.5]}, "mid": 2.0})
    found, _ = sd15.image_prompts.told(RED, 1)
    scales = {"down_0_0_attention": 0.0, "up_0_0_attention": 0.0, "up_0_1_attention": 0.5, "middle_attention": 2.0}
    assert set(found) == set(scales)
    for name, scale in scales.items():
        np.testing.assert_array_equal(found[name][0][0], whole[name][0][0])
        np.testing.assert_allclose(found[name][0][1], scale * whole[name][0][1], atol=1e-6)


@pytest.mark.slow  # the tests above cover its parts
def test_other_scales_blocks_and_pictures_compile_nothing(sd15):
    """All scales, blocks and pictures share one program, and blocks that a scale omits have scale 0."""
    sd15.set_ip_adapter_scale(1.0)
    drawn = {"red": sd15("a fox", ip_adapter_image=RED, **CALL).images}
    scales = {
        "half": 0.5,
        "up": {"up": {"block_1": [0.0, 1.0]}},
        "down": {"down": 1.0},
        "none": {"mid": 0.0},
        "zero": 0,
    }
    with compilations() as names:
        drawn["blue"] = sd15("a fox", ip_adapter_image=BLUE, **CALL).images
        for name, scale in scales.items():
            sd15.set_ip_adapter_scale(scale)
            drawn[name] = sd15("a fox", ip_adapter_image=[RED], **CALL).images
    assert "jit(draw)" not in names
    assert "jit(_prompts)" not in names
    np.testing.assert_array_equal(drawn["none"], drawn["zero"])
    different = ("red", "blue", "half", "up", "down", "zero")
    for number, one in enumerate(different):
        for other in different[number + 1 :]:
            assert np.abs(drawn[one] - drawn[other]).max() > 1e-4, (one, other)


def test_pictures_together_and_beside_each_other(sd15):
    """Two pictures of one adapter add tokens; two adapters are attended to separately."""
    sd15.set_ip_adapter_scale(1.0)
    asked, nothing = sd15.image_prompts.told([[RED, BLUE]], 3)
    keys, values = asked["middle_attention"][0]
    assert keys.shape == values.shape == (3, 1, 8, 16)
    twice, _ = sd15.image_prompts.told(RED, 1)
    np.testing.assert_allclose(keys[:1, :, :4], twice["middle_attention"][0][0], atol=1e-5)
    assert np.abs(np.asarray(nothing["middle_attention"][0][0]) - keys).max() > 1e-3
    pair = Pipeline(sd15.parts)
    pair.load_ip_adapter([BASE, BASE], scale=[0.25, 0.75])
    first, second = pair.image_prompts.told([RED, BLUE], 1)[0]["middle_attention"]
    np.testing.assert_allclose(first[1], 0.25 * values[:1, :, :4], atol=1e-5)
    np.testing.assert_allclose(second[1], 0.75 * values[:1, :, 4:], atol=1e-5)
    cross, x = CrossAttention(num_heads=2, dtype=np.float32), np.linspace(-1, 1, 96).reshape(1, 6, 16)
    key, value = keys[:1, 0], values[:1, 0]
    params = cross.init(jax.random.key(0), x, x)
    halves = (key, 0.25 * value), (key, 0.75 * value)
    outputs = [cross.apply(params, x, x, None, beside) for beside in (halves, ((key, value),), ())]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert np.abs(outputs[1] - outputs[2]).max() > 1e-3


@pytest.mark.parametrize("file", [BASE, PLUS], ids=lambda file: file.stem)
def test_files_are_written_as_they_were_read(sd15, file, tmp_path):
    network = sd15.parts.models["unet"].module
    write_ip_adapter(tmp_path / "own.safetensors", read_ip_adapter(file, network), network)
    ours, theirs = read_state(tmp_path / "own.safetensors"), read_state(file)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_numbers_of_published_files():
    """SD 1.5 has 16 attentions in the order down, up, middle, and SDXL 70, with the widths of published files."""
    fields = {"image_size": 64, "image_channels": 4}
    sd = attention_shapes(MODELS.build("conditional_unet", **fields).transformers(), 768)
    widths = [shape["key"].shape for shape in sd.values()]
    assert widths == [
        (1, 768, w) for w in (320, 320, 640, 640, 1280, 1280, *(1280,) * 3, *(640,) * 3, *(320,) * 3, 1280)
    ]
    xl = MODELS.build(
        {"name": "conditional_unet", "channels": (320, 640, 1280), "attends": (False, True, True),
         "transformer_depth": (1, 2, 10), "num_heads": (5, 10, 20), "context_channels": 2048}, **fields,
    )  # fmt: skip
    assert sum(stage.depth for stage in xl.transformers()) == 70
    style, layout = scales_of({"style": 1.0}, xl), scales_of({"layout": 0.5}, xl)
    assert {name for name, scale in style.items() if scale} == {"up_2_1_attention"}  # up_blocks.0.attentions.1
    assert {name: scale for name, scale in layout.items() if scale} == {"down_2_1_attention": 0.5}
    assert style == scales_of({"up": {"block_0": [0.0, 1.0, 0.0]}}, xl)
    assert layout == scales_of({"down": {"block_2": [0.0, 0.5]}}, xl)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"style": 1.0}, "'style' names a block of SDXL"),
        ({"up": {"block_0": 1.0}}, "'up' has transformers in block_1, and none in 'block_0'"),
        ({"up": {"block_1": [1.0]}}, "'up' block_1 has 2 transformers, but 1 scales"),
        ({"sideways": 1.0}, "names 'down', 'mid', 'up', 'style' or 'layout', not 'sideways'"),
        (float("nan"), "must be a finite number, it is nan"),
        ([0.5, 0.5], "2 scales for 1 IP-Adapters"),
    ],
)
def test_scales_that_mean_nothing(sd15, scale, message):
    with pytest.raises(UserError, match=message):
        sd15.set_ip_adapter_scale(scale)


def test_calls_that_do_not_fit(sd15):
    with pytest.raises(UserError, match="an IP-Adapter is loaded but has no picture"):
        sd15("a fox", **CALL)
    with pytest.raises(UserError, match=r"ip_adapter_image has 2 entries for 1 IP-Adapter: give one for each"):
        sd15("a fox", ip_adapter_image=[RED, BLUE], **CALL)
    with pytest.raises(UserError, match="ip_adapter_image is an empty list"):
        sd15("a fox", ip_adapter_image=[[]], **CALL)
    with pytest.raises(UserError, match="are normalised for the image encoder"):
        sd15("a fox", ip_adapter_image=np.full((1, 32, 32, 3), np.nan, np.float32), **CALL)
    bare = Pipeline.from_pretrained(GOLDEN / "sd15", scheduler="euler")
    with pytest.raises(UserError, match="ip_adapter_image is for a pipeline with an IP-Adapter"):
        bare("a fox", ip_adapter_image=np.asarray(RED), **CALL)
    with pytest.raises(UserError, match="there is no IP-Adapter to scale"):
        bare.set_ip_adapter_scale(0.5)
    alone = GOLDEN.parent / "adapters"
    with pytest.raises(UserError, match="is not a file of an IP-Adapter: it has no ip_adapter"):
        bare.load_ip_adapter(alone / "kohya.safetensors")
    with pytest.raises(UserError, match="there is no image encoder"):
        bare.load_ip_adapter(BASE, image_encoder_folder="/nowhere")
    with pytest.raises(UserError, match="is not a picture encoder: it is a ClipText"):
        bare.load_ip_adapter(BASE, image_encoder_folder=GOLDEN / "sd15" / "text_encoder")


def test_files_that_do_not_fit(sd15, tmp_path):
    """Files with missing or extra tensors, another base, non-finite numbers or another image encoder are refused."""
    network, whole, path = sd15.parts.models["unet"].module, read_state(BASE), tmp_path / "changed.safetensors"

    def refused(message, *, other=None, **changes):
        write_state(path, {k: v for k, v in {**whole, **changes}.items() if v is not None})
        with pytest.raises(UserError, match=message):
            read_ip_adapter(path, other or network)

    key = "ip_adapter.7.to_k_ip.weight"
    refused(rf"1 missing: {key}", **{key: None})
    refused("1 unexpected: ip_adapter.0.to_q_lora", **{"ip_adapter.0.to_q_lora": whole[key]})
    refused(f"{key} is not finite", **{key: np.full_like(whole[key], np.nan)})
    more = {f"ip_adapter.9.{n}": whole[f"ip_adapter.7.{n}"] for n in ("to_k_ip.weight", "to_v_ip.weight")}
    refused("for another base: it has 5 attentions to the text, but the network has 4", **more)
    refused(
        "for another base: its tokens have 32 channels, but the network's text has 24",
        other=network.clone(context_channels=24),
    )
    refused("neither that of an IP-Adapter", **{"image_proj.proj.weight": None})
    refused("IP-Adapter needs a text-conditioned U-Net", other=MODELS.example("dit"))
    wide = {"image_proj.proj.weight": np.concatenate([whole["image_proj.proj.weight"]] * 2, axis=1)}
    write_state(path, {**whole, **wide})
    with pytest.raises(UserError, match=r"reads 32 channels of an image encoder, but .* gives 16"):
        sd15.load_ip_adapter(path)
    assert len(jax.tree.leaves(sd15.image_prompts.adapters[0].own)) == 12, "what was loaded before stays"
