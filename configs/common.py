"""The common start of all paper configs: the runner's fields, and the data fields that several papers share.

Each paper's own config states everything else in that paper's recipe.
"""

from ml_collections import ConfigDict

from configs.base import runner

CONVOLUTIONS = dict(base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
TRANSFORMER = dict(patch_size=2, hidden_size=64, num_heads=4)
"""Small networks, which take the place of a recipe's own where it is tried on two CPU cores (`SMOKE` of a paper)."""


def cifar10() -> ConfigDict:
    """CIFAR-10 (50,000 images of 32x32, 10 classes), flipped at random; 10,000 are held out."""
    config = runner()
    config.data.update(dataset="cifar10", image_size=32, validation_split="test", flip=True)
    config.log.validate_every = 5_000
    config.log.validation_examples = 10_000
    config.log.sample_every = 20_000
    config.checkpoint.keep_best = 1
    config.evaluation.metrics = ("nearest_neighbours",)
    config.evaluation.num_samples = 1_000
    return config


def imagenet64() -> ConfigDict:
    """ImageNet at 64x64 in the version of TFDS (Chrabaszcz et al. 2017), with its 1000 classes."""
    config = runner()
    config.data.update(dataset="imagenet_resized/64x64", image_size=64, validation_split="validation", flip=True)
    return _judged_at_the_end(config)


def imagenet256() -> ConfigDict:
    """ImageNet at 256x256: images are halved to about that size, then cut to the middle (Dhariwal & Nichol 2021)."""
    config = runner()
    config.data.update(dataset="imagenet2012", image_size=256, validation_split="validation", flip=True)
    config.data.crop = "adm"
    return _judged_at_the_end(config)


def celeba_hq256() -> ConfigDict:
    """CelebA-HQ at 256x256: 30,000 faces without classes; the last 1,000 are held out."""
    config = runner()
    config.data.update(dataset="celeb_a_hq/256", image_size=256, validation_split="train[29000:]", flip=True)
    config.data.split = "train[:29000]"
    return _judged_at_the_end(config)


def latents(image_size: int, channels: int = 4, real: str = "") -> ConfigDict:
    """ImageNet's latents with 1000 classes.

    Args:
      image_size: side of the latents.
      channels: channels of the latents.
      real: "FOLDER,FIRST_STAGE": latents that `experiments.prepare_latents` has written, and the first stage that made
        them. Without it the data is a stand-in, Gaussian mixtures of the same shape, and nothing is held out.
    """
    config = runner()
    if not real:
        config.data.update(dataset="synthetic_latents", image_size=image_size)
        config.data.options = ConfigDict(dict(size=image_size, channels=channels))
        return config
    folder, comma, first_stage = real.partition(",")
    if not (folder and comma and first_stage):
        raise ValueError(f"{real!r} is not FOLDER,FIRST_STAGE: prepared latents, a comma, and what made them")
    config.data.update(dataset=f"latents:{folder}", image_size=image_size, validation_split="validation")
    config.first_stage.path = first_stage
    return _judged_at_the_end(config)


def openwebtext() -> ConfigDict:
    """OpenWebText: 1024 GPT-2 tokens with an end of text at both ends; the last 100,000 documents are held out."""
    config = runner()
    config.data.update(dataset="text", validation_split="test")
    config.data.options = ConfigDict(dict(corpus="openwebtext", length=1024))
    config.log.validate_every = 10_000
    config.log.validation_examples = 5_120
    config.log.sample_every = 50_000
    config.log.num_samples = 16
    config.checkpoint.keep_best = 1
    config.sampling.batch_size = 16
    config.evaluation.metrics = ("perplexity",)
    config.evaluation.num_samples = 16
    return config


def _judged_at_the_end(config: ConfigDict) -> ConfigDict:
    config.log.validate_every = 10_000
    config.log.validation_examples = 10_000
    config.log.sample_every = 20_000
    config.checkpoint.keep_best = 1
    config.evaluation.metrics = ("nearest_neighbours",)
    config.evaluation.num_samples = 1_000
    return config
