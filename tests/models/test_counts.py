"""Parameter counts of the papers' networks as exact integers, counted on the official code or published.

Nothing is allocated. Counts are of trainable parameters unless stated otherwise.
"""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models import MODELS, NoisyClassifier, count_parameters, example_inputs, init_params

CIFAR = {"image_size": 32, "image_channels": 3}
IMAGENET64 = {"image_size": 64, "image_channels": 3, "num_classes": 1000}
LATENT = {"image_size": 32, "image_channels": 4, "num_classes": 1000}
LATENT512 = {"image_size": 64, "image_channels": 4, "num_classes": 1000}
PIXELS256 = {"image_size": 256, "image_channels": 3, "num_classes": 1000}

SCORE_SDE = {"channel_multipliers": (1, 2, 2, 2)}
IDDPM = {
    "name": "adm",
    "image_channels": 3,
    "base_channels": 128,
    "resampling": "conv",
    "head_channels": None,
    "num_heads": 4,
    "attention_resolutions": (16, 8),
    "learn_sigma": True,
}
ADM = {"name": "adm", "image_channels": 3, "learn_sigma": True}
ADM256 = {**ADM, "base_channels": 256, "num_res_blocks": 2}
BIG = {"channel_multipliers": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, "encoder": "skip", "decoder": "skip"}

COUNTS = {
    "DDPM CIFAR-10": ({"name": "unet", **CIFAR}, 35_746_307),
    "DDPM 256": (
        {"name": "unet", "image_size": 256, "image_channels": 3, "channel_multipliers": (1, 1, 2, 2, 4, 4)},
        113_673_219,
    ),
    "DDIM CelebA 64": (
        {"name": "unet", "image_size": 64, "image_channels": 3, "channel_multipliers": (1, 2, 2, 2, 4)},
        78_700_803,
    ),
    "D3PM CIFAR-10, logistic": ({"name": "unet", **CIFAR, "out_channels": 6}, 35_749_766),
    "D3PM CIFAR-10, logits": ({"name": "unet", **CIFAR, "out_channels": 768}, 36_628_352),
    "score SDE ddpm": ({"name": "unet", **CIFAR, "up_attention": "last"}, 35_218_947),
    "score SDE DDPM++": ({"name": "ddpmpp", **CIFAR, **SCORE_SDE}, 61_804_419),
    "score SDE DDPM++ deep": ({"name": "ddpmpp", **CIFAR, **SCORE_SDE, "num_res_blocks": 8}, 106_632_579),
    "score SDE NCSN++": ({"name": "ncsnpp", **CIFAR, **SCORE_SDE}, 62_758_787),
    "score SDE NCSN++ deep": ({"name": "ncsnpp", **CIFAR, **SCORE_SDE, "num_res_blocks": 8}, 107_586_947),
    "score SDE NCSN++ VP": ({"name": "ncsnpp", **CIFAR, **SCORE_SDE, "embedding": "positional"}, 62_693_251),
    "score SDE NCSN++ VP deep": (
        {"name": "ncsnpp", **CIFAR, **SCORE_SDE, "embedding": "positional", "num_res_blocks": 8},
        107_521_411,
    ),
    "score SDE NCSN++ 256": ({"name": "ncsnpp", "image_size": 256, "image_channels": 3, **BIG}, 65_574_421),
    "score SDE NCSN++ 1024": (
        {
            "name": "ncsnpp",
            "image_size": 1024,
            "image_channels": 3,
            **BIG,
            "base_channels": 16,
            "channel_multipliers": (1, 2, 4, 8, 16, 32, 32, 32),
            "num_res_blocks": 1,
        },
        105_785_880,
    ),
    "flow matching CIFAR-10": (
        {
            "name": "adm",
            **CIFAR,
            "base_channels": 128,
            "channel_multipliers": (2, 2, 2),
            "num_res_blocks": 4,
            "attention_resolutions": (16,),
            "num_heads": 1,
            "head_channels": None,
            "resampling": "pool",
        },
        55_676_419,
    ),
    "progressive distillation CIFAR-10": (
        {
            "name": "adm",
            **CIFAR,
            "base_channels": 256,
            "channel_multipliers": (1, 1, 1),
            "num_res_blocks": 3,
            "attention_resolutions": (16, 8),
            "num_heads": 1,
            "head_channels": None,
        },
        60_004_099,
    ),
    "iDDPM CIFAR-10": ({**IDDPM, "image_size": 32}, 52_546_438),
    "iDDPM ImageNet 64": ({**IDDPM, "image_size": 64}, 121_063_942),
    "iDDPM ImageNet 64, classes": (
        {**IDDPM, "image_size": 64, "base_channels": 192, "num_classes": 1000},
        273_049_350,
    ),
    "iDDPM LSUN 256": (
        {
            **IDDPM,
            "image_size": 256,
            "num_res_blocks": 2,
            "num_heads": 1,
            "scale_shift": False,
            "attention_resolutions": (16,),
        },
        113_676_678,
    ),
    "ADM 64": ({**ADM, **IMAGENET64}, 295_904_454),
    "ADM 128": ({**ADM256, "image_size": 128, "num_classes": 1000, "head_channels": None}, 421_529_606),
    "ADM 256": ({**ADM256, "image_size": 256, "num_classes": 1000}, 553_838_086),
    "ADM 256 unconditional": ({**ADM256, "image_size": 256}, 552_814_086),
    "ADM 512": ({**ADM256, "image_size": 512, "num_classes": 1000}, 558_997_638),
    "ADM-U 64 to 256": (
        {**ADM, **PIXELS256, "num_res_blocks": 2, "low_resolution_channels": 3},
        311_795_910,
    ),
    "ADM-U 128 to 512": (
        {
            **ADM,
            **PIXELS256,
            "image_size": 512,
            "num_res_blocks": 2,
            "low_resolution_channels": 3,
            "attention_resolutions": (32, 16),
            "channel_multipliers": (1, 1, 2, 2, 4, 4),
        },
        308_835_270,
    ),
    "EDM ADM, consistency model ImageNet 64": ({"name": "adm", **IMAGENET64}, 295_899_267),
    "consistency model LSUN 256": (
        {**ADM256, "learn_sigma": False, "image_size": 256, "scale_shift": False},
        526_304_771,
    ),
    "EDM DDPM++": ({"name": "ddpmpp", **CIFAR}, 55_732_739),
    "EDM DDPM++, classes": ({"name": "ddpmpp", **CIFAR, "num_classes": 10}, 55_734_147),
    "EDM DDPM++, augmentation": ({"name": "ddpmpp", **CIFAR, "augment_channels": 9}, 55_733_891),
    "EDM DDPM++, augmentation, scale and shift of time": (
        {"name": "ddpmpp", **CIFAR, "augment_channels": 9, "modulation": "double_norm"},
        60_067_715,
    ),
    "EDM DDPM++, both": ({"name": "ddpmpp", **CIFAR, "num_classes": 10, "augment_channels": 9}, 55_735_299),
    "EDM NCSN++": ({"name": "ncsnpp", **CIFAR}, 56_395_523),
    "EDM NCSN++, classes": ({"name": "ncsnpp", **CIFAR, "num_classes": 10}, 56_398_339),
    "EDM NCSN++, augmentation": ({"name": "ncsnpp", **CIFAR, "augment_channels": 9}, 56_397_827),
    "EDM NCSN++, both": ({"name": "ncsnpp", **CIFAR, "num_classes": 10, "augment_channels": 9}, 56_400_643),
    "EDM FFHQ DDPM++, augmentation": (
        {"name": "ddpmpp", **CIFAR, **SCORE_SDE, "image_size": 64, "augment_channels": 9},
        61_805_571,
    ),
    "EDM FFHQ NCSN++, augmentation": (
        {"name": "ncsnpp", **CIFAR, **SCORE_SDE, "image_size": 64, "augment_channels": 9},
        62_761_091,
    ),
    # Guessed in the literature for iCT-deep, whose configuration is not public.
    "iCT deep CIFAR-10, perhaps": ({"name": "ncsnpp", **CIFAR, "num_res_blocks": 8}, 97_610_499),
    "MeanFlow CIFAR-10": ({"name": "ddpmpp", **CIFAR, "num_times": 2, "noise_channel_multiplier": 2}, 55_929_347),
    "MeanFlow CIFAR-10, augmentation": (
        {"name": "ddpmpp", **CIFAR, "num_times": 2, "noise_channel_multiplier": 2, "augment_channels": 6},
        55_932_419,
    ),
    # The released EDM2 files add 128 weights of the loss (objectives/uncertainty.py).
    # XXS is the authors' preset of 64 channels; L and XL are 777.5M and 1119.3M in the paper.
    "EDM2 XXS": ({"name": "edm2", **LATENT512, "size": "XXS"}, 31_309_029 - 128),
    "EDM2 L": ({"name": "edm2", **LATENT512, "size": "L"}, 777_498_085 - 128),
    "EDM2 XL": ({"name": "edm2", **LATENT512, "size": "XL"}, 1_119_283_749 - 128),
    "EDM2 XS": ({"name": "edm2", **LATENT512, "size": "XS"}, 124_713_253 - 128),
    "EDM2 S": ({"name": "edm2", **LATENT512, "size": "S"}, 280_212_837 - 128),
    "EDM2 M": ({"name": "edm2", **LATENT512, "size": "M"}, 497_807_781 - 128),
    "EDM2 XXL": ({"name": "edm2", **LATENT512, "size": "XXL"}, 1_523_164_773 - 128),
    "EDM2 XS unconditional": ({"name": "edm2", **LATENT512, "size": "XS", "num_classes": 0}, 124_201_253 - 128),
    "EDM2 S unconditional": ({"name": "edm2", **LATENT512, "num_classes": 0}, 279_444_837 - 128),
    "EDM2 S ImageNet 64": ({"name": "edm2", **IMAGENET64}, 280_209_381 - 128),
    # The 2 or 3,074 parameters of the schedule are counted with the papers' networks.
    "VDM CIFAR-10": ({"name": "vdm", **CIFAR}, 30_578_181 - 2),
    "VDM CIFAR-10, augmented": ({"name": "vdm", **CIFAR, "features": 256}, 122_140_677 - 3_074),
    "VDM ImageNet 32": ({"name": "vdm", **CIFAR, "features": 256}, 122_137_605 - 2),
    "U-ViT CIFAR-10 S/2": ({"name": "uvit", **CIFAR, "size": "S/2"}, 44_255_328),
    "U-ViT ImageNet 64 M/4": ({"name": "uvit", **IMAGENET64, "size": "M/4", "null_row": False}, 130_940_292),
    "U-ViT ImageNet 256 L/2": ({"name": "uvit", **LATENT, "size": "L/2"}, 286_763_172),
    "U-ViT ImageNet 256 H/2": ({"name": "uvit", **LATENT, "size": "H/2", "last_convolution": False}, 500_832_016),
    # 45M and 58M in the authors' table; computed by formula from libs/uvit_t2i.py.
    "U-ViT MS-COCO S/2": ({"name": "uvit", **LATENT, "num_classes": 0, "size": "S-text/2"}, 44_692_644),
    "U-ViT MS-COCO S/2 deep": ({"name": "uvit", **LATENT, "num_classes": 0, "size": "S-deep-text/2"}, 58_345_636),
    # Counted on the authors' code, guided_diffusion/vision_transformer.py.
    "Min-SNR ViT-B/2 on latents": ({"name": "vit", **LATENT, "size": "B/2"}, 89_109_520),
    "Min-SNR ViT-XL/2 on latents": ({"name": "vit", **LATENT, "size": "XL/2"}, 452_390_416),
    "Min-SNR ViT-L/4 ImageNet 64": ({"name": "vit", **IMAGENET64, "size": "L/4"}, 269_983_792),
    "JiT B/16": ({"name": "jit", **PIXELS256, "size": "B/16"}, 131_123_712),
    "JiT H/16": ({"name": "jit", **PIXELS256, "size": "H/16"}, 952_514_368),
    "JiT B/32 at 512": ({"name": "jit", **PIXELS256, "image_size": 512, "size": "B/32"}, 133_190_400),
    "MeanFlow B/4": ({"name": "dit", **LATENT, "num_times": 2, "size": "B/4"}, 131_165_248),
    # The shortcut models' code has 256 more parameters in a table that does not affect its output.
    "MeanFlow B/2, shortcut B/2": ({"name": "dit", **LATENT, "num_times": 2, "size": "B/2"}, 131_091_472),
    "MeanFlow M/2": ({"name": "dit", **LATENT, "num_times": 2, "size": "M/2"}, 308_019_216),  # 308M in the paper
    "MeanFlow XL/2": ({"name": "dit", **LATENT, "num_times": 2, "size": "XL/2"}, 676_440_592),
    "MDLM and SEDD small": ({"name": "ddit", "image_size": 32, "image_channels": 50_258}, 169_627_218),
    "MDLM tiny": ({"name": "ddit", "image_size": 32, "image_channels": 50_258, "size": "tiny"}, 80_061_266),
    "MDLM and SEDD medium": (
        {"name": "ddit", "image_size": 32, "image_channels": 50_258, "size": "medium"},
        424_477_010,
    ),
    "MDLM LM1B": ({"name": "ddit", "image_size": 16, "image_channels": 30_522}, 139_292_986),
    # Includes the 1001 x 512 label table, which the paper's code keeps outside its U-Net.
    "LDM ImageNet 256": (
        {"name": "ldm_unet", **LATENT512, "image_channels": 3, "size": "imagenet256"},
        400_920_579 + 512_512,
    ),
    "LDM CelebA, FFHQ, bedrooms": ({"name": "ldm_unet", "image_size": 64, "image_channels": 3}, 274_056_163),
    "LDM churches": (
        {"name": "ldm_unet", "image_size": 32, "image_channels": 4, "size": "churches"},
        294_966_916,
    ),
    "LDM text to image": ({"name": "ldm_unet", "image_size": 32, "image_channels": 4, "size": "text"}, 872_300_484),
    "diffusers DiT-XL/2": (
        {"name": "dit", **LATENT, "size": "XL/2", "learn_sigma": True, "own_conditioning": True},
        749_826_464,
    ),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_count(name):
    spec, count = COUNTS[name]
    assert count_parameters(MODELS.build(spec)) == count


@pytest.mark.parametrize(
    ("size", "total"),
    [
        ("S/2", 32_963_360),
        ("B/2", 130_512_416),
        ("L/2", 458_102_816),
        ("XL/2", 675_129_632),
        ("S/4", 32_920_448 + 64 * 384),
        ("XL/8", 675_664_640 + 16 * 1152),
    ],
)
def test_dit_with_its_fixed_positions(size, total):
    """The authors' total also counts the position table, which is a constant here."""
    network = MODELS.build({"name": "dit", **LATENT, "size": size, "learn_sigma": True})
    tokens = (network.image_size // network.patch_size) ** 2
    assert count_parameters(network) + tokens * network.hidden_size == total


def test_dit_512_has_more_positions_and_the_same_parameters():
    """The totals with position tables are 675,129,632 at 256 pixels and 676,014,368 at 512 pixels."""
    network = MODELS.build({"name": "dit", **LATENT512, "size": "XL/2", "learn_sigma": True})
    assert count_parameters(network) == 674_834_720
    assert 674_834_720 + 32**2 * 1152 == 676_014_368


@pytest.mark.parametrize(
    ("size", "blocks", "count"),
    [(64, 4, 65_438_568), (128, 2, 42_568_040), (256, 2, 54_096_360), (512, 2, 54_448_360)],
)
def test_adm_classifiers(size, blocks, count):
    assert count_parameters(NoisyClassifier(image_size=size, num_res_blocks=blocks)) == count


def uvit_text(width, depth):
    """The parameter count by the layers of libs/uvit_t2i.py: patches of 2 x 2 x 4, 77 CLIP vectors, one time, a last
    convolution."""
    block = 4 * width**2 + width + 8 * width**2 + 5 * width + 4 * width
    skips = depth // 2 * (2 * width**2 + width)
    ends = (16 * width + width) + (width * 16 + 16) + (768 * width + width) + (1 + 77 + 256) * width + 2 * width
    return (depth + 1) * block + skips + ends + (4 * 4 * 9 + 4)


def ddit(width, depth, values):
    """The parameter count by the layers of MDLM's models/dit.py: a table, 128 time channels, blocks, the last layer."""
    block = 2 * width + 4 * width**2 + 8 * width**2 + 5 * width + 6 * (128 + 1) * width
    time = (256 * 128 + 128) + (128 * 128 + 128)
    return values * width + time + depth * block + width + 2 * (128 + 1) * width + values * (width + 1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("U-ViT MS-COCO S/2", uvit_text(512, 12)),
        ("U-ViT MS-COCO S/2 deep", uvit_text(512, 16)),
        ("MDLM tiny", ddit(512, 8, 50_258)),
        ("MDLM and SEDD small", ddit(768, 12, 50_258)),
        ("MDLM and SEDD medium", ddit(1024, 24, 50_258)),
    ],
)
def test_counts_by_formula(name, count):
    """Counts that were not taken from the authors' code follow from its layers."""
    assert COUNTS[name][1] == count


def test_the_text_of_uvit_is_tokens_of_its_own():
    """The output depends on every text vector, and the sampler's null condition is a text of zeros."""
    network = MODELS.build(
        {
            **{"name": "uvit", "image_size": 4, "image_channels": 2, "hidden_size": 16, "depth": 2, "num_heads": 2},
            **{"context_channels": 5, "context_tokens": 3},
        }
    )
    params = init_params(network, jax.random.key(0))
    assert params["position"].shape == (1 + 3 + 4, 16)
    x, time = jax.random.normal(jax.random.key(1), (1, 4, 4, 2)), jnp.ones((1,))

    def output(context):
        return network.apply({"params": params}, x, time, {"context": context})

    null = example_inputs(network)[2]["context"]
    assert null.shape == (1, 3, 5)
    assert not null.any()
    for token in range(3):
        assert abs(output(null.at[0, token].set(1.0)) - output(null)).max() > 1e-6


@pytest.mark.parametrize(("name", "frozen"), [("score SDE NCSN++", 128), ("score SDE NCSN++ 1024", 16)])
def test_random_frequencies_are_not_trained(name, frozen):
    spec, count = COUNTS[name]
    assert count_parameters(MODELS.build(spec), frozen=True) == count + frozen
