"""A first stage for scenes at 32x32: Gaussian latents of a quarter of the side, trained from scratch on a CPU.

A small autoencoder for latent diffusion (Rombach et al. 2022, arXiv:2112.10752). Its latents are 8x8 with 8 channels,
since four channels at this factor blur small shapes. The coloured shapes are generated while it trains, so there is
nothing to prepare. The learning rate falls to zero within the budget, and an average of the weights is kept.

    python -m experiments.train --config=configs/scenes_autoencoder.py --workdir=runs/scenes_ae
    python -m experiments.prepare_latents --first_stage=runs/scenes_ae --dataset=scenes --out=data/scenes_latents

`:f2` after the file name gives latents of half the side with 4 channels. Reconstructions are sharper after the same
number of steps, but a network on these latents has four times the positions. `:f8`, with an eighth of the side and 16
channels, learns on 128x128 pixels; `configs/scenes_any.py:latents` uses its latents. `:small` is the first stage of
`make text-to-image`: one or two objects on plain grounds at 24x24. Its networks see patches of 4x4 pixels as one, so
that a step costs a tenth, and its latents are 6x6 with 16 channels. Linear maps beside the networks leave the networks
less to learn: 16 principal components alone keep 92% of pictures readable.
"""

from ml_collections import ConfigDict

from configs.base import runner

CODECS = {
    "f4": dict(name="kl", size="small_f4", channels=(24, 48, 64), latent_channels=8),
    "f2": dict(name="kl", size="small_f2", channels=(24, 48), latent_channels=4),
    "f8": dict(name="kl", size="small_f8", channels=(24, 32, 48, 64), latent_channels=16),
    "small": dict(name="kl", size="small_f4", channels=(64,), patch_size=4, latent_channels=16),
}


def get_config(factor: str = "f4") -> ConfigDict:
    """The first stage "f4" or "f2"; "f8", for scenes of any size; or "small", for the demo."""
    if factor not in CODECS:
        raise ValueError(f"{factor!r} is none of {', '.join(CODECS)}")
    config = runner()

    config.data.dataset = "scenes"
    config.data.validation_split = "validation"
    config.data.options = ConfigDict(dict(size=32, max_objects=3, num_examples=50_000, num_test=2_000))

    config.codec = ConfigDict(CODECS[factor])
    config.objective = ConfigDict(dict(name="reconstruction", l1=1.0, l2=1.0, penalty_weight=1e-6))
    config.objective.update(perceptual=0.0, vgg="", lpips="")
    config.objective.update(adversarial=0.0, adversarial_start=0, adaptive=True)

    config.train.steps = 2_000
    config.train.batch_size = 32
    config.optimizer.update(name="adam", learning_rate=3e-3, b1=0.9, b2=0.99, eps=1e-8)
    config.optimizer.update(warmup_steps=50, decay="cosine", clip_norm=1.0)
    config.ema.half_lives = (2_000,)
    config.sampling.batch_size = 100

    config.log.every = 50
    config.log.validate_every = 500
    config.log.validation_examples = 512
    config.log.sample_every = 500
    config.log.num_samples = 20
    config.checkpoint.every = 500
    config.evaluation.metrics = ("psnr", "ssim")
    config.evaluation.num_samples = 500
    config.evaluation.max_real = 5_000
    if factor == "f8":
        config.data.options.update(size=128, max_objects=4)
    return _small(config) if factor == "small" else config


def _small(config: ConfigDict) -> ConfigDict:
    config.data.options.update(size=24, max_objects=2)
    config.data.options = ConfigDict({**config.data.options, "textured": False, "density": "sentence"})
    with config.unlocked():
        config.codec.update(shortcut=True)
    config.objective.penalty_weight = 2e-3
    config.train.steps = 2_500
    config.optimizer.warmup_steps = 100
    config.ema.half_lives = (4_000,)
    config.log.update(every=100, validate_every=1_000, sample_every=2_000)
    config.checkpoint.every = 1_000
    return config
