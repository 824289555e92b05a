"""A first stage for scikit-learn's handwritten digits: Gaussian latents of half the side, in under a minute.

A very small autoencoder for latent diffusion (Rombach et al. 2022, arXiv:2112.10752), trained on the 1,437 real 8x8
images that come with scikit-learn. Tests use it, and it shows how a first stage is trained. Its latents are 4x4 with 4
channels.

    python -m experiments.train --config=configs/digits_autoencoder.py --workdir=runs/digits_ae
    python -m experiments.prepare_latents --first_stage=runs/digits_ae --dataset=digits --out=data/digits_latents
    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits_latent \
        --config.data.dataset=latents:data/digits_latents --config.data.image_size=4 \
        --config.first_stage.path=runs/digits_ae --config.process.prediction.sigma_data=1.0

`:codec=vq` after the file name selects a quantised first stage.
"""

from ml_collections import ConfigDict

from configs.base import runner

CODECS = {
    "kl": (dict(name="kl", size="small_f2", channels=(32, 48)), 1e-6),
    "vq": (dict(name="vq", size="small_f2", channels=(32, 48), num_codes=256), 1.0),
}


def get_config(argument: str = "codec=kl") -> ConfigDict:
    """The first stage with Gaussian latents, or "codec=NAME" for one of `CODECS`."""
    name = argument.removeprefix("codec=")
    if name == argument or name not in CODECS:
        raise ValueError(f"{argument!r} is not codec=NAME with one of {', '.join(CODECS)}")
    codec, penalty_weight = CODECS[name]

    config = runner()

    config.data.dataset = "digits"
    config.data.validation_split = "test"
    config.data.image_size = 8

    config.codec = ConfigDict(codec)
    config.objective = ConfigDict(dict(name="reconstruction", l1=1.0, l2=1.0, penalty_weight=penalty_weight))
    config.objective.update(perceptual=0.0, vgg="", lpips="")
    config.objective.update(adversarial=0.0, adversarial_start=0, adaptive=True)

    config.train.steps = 600
    config.train.batch_size = 64
    config.optimizer.update(name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, eps=1e-8)
    config.optimizer.update(warmup_steps=50, decay="cosine", clip_norm=1.0)
    config.ema.half_lives = (2_000,)
    config.sampling.batch_size = 256

    config.log.every = 25
    config.log.validate_every = 100
    config.log.validation_examples = 320
    config.log.sample_every = 100
    config.log.num_samples = 20
    config.checkpoint.every = 100
    config.checkpoint.keep_best = 1
    config.evaluation.metrics = ("psnr", "class_accuracy")
    config.evaluation.num_samples = 360
    return config
