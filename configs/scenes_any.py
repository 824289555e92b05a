"""Text to image at any size: scenes in five shapes of about 256 x 256 pixels, drawn at other sizes up to 2048 x 2048.

A diffusion transformer on patches of 16 x 16 pixels predicts the clean picture, which patches of this size need (JiT,
Li & He 2025, arXiv:2511.13720). A picture has 253 to 260 tokens. In larger pictures the rotary positions are scaled to
the range of the training, so that a sample is one large scene and not many small ones. Pictures are never cut to
squares: each goes to the bucket of its shape, and the network is told sizes and crop (SDXL, Podell et al. 2023,
arXiv:2307.01952). The scenes are generated while they are read. No download.

Expected: not trained to the end yet. docs/sizes.md says what a picture of 2048 x 2048 pixels costs.

`:latents` after the file name diffuses the latents of `configs/scenes_autoencoder.py:f8` in patches of 2 x 2; large
pictures are decoded in tiles. `:narrow` is a narrow network for trying out sizes; it learns a little in one minute on
one core.

    python -m experiments.train --config=configs/scenes_any.py --workdir=runs/scenes_any
    python -m experiments.generate --workdir=runs/scenes_any --prompt="a ring" --height=2048 --width=2048 --out=2k.png
"""

from ml_collections import ConfigDict

from configs.base import runner

SHAPES = ("256x256", "208x320", "320x208", "176x368", "368x176")


def get_config(argument: str = "") -> ConfigDict:
    """The recipe in pixels, with "latents" in latents, or with "narrow" small enough for trials."""
    if argument not in _VARIANTS:
        raise ValueError(f"{argument!r} is none of {', '.join(filter(None, _VARIANTS))}")
    config = runner()
    config.update(
        data=dict(dataset="scenes", image_size=256, buckets=SHAPES, validation_split="validation"),
        model=dict(name="dit", patch_size=16, hidden_size=192, depth=8, num_heads=3, positions="rotary"),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="x0"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=0.8, std=0.8),
        objective=dict(name="jit", least=0.05),
        train=dict(steps=50_000, batch_size=32, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=3e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(50_000,)),
        sampling=dict(sampler=dict(name="flow_heun"), steps=20, guidance=dict(scale=3.0), batch_size=16),
        log=dict(validate_every=2_000, validation_examples=256, sample_every=2_000, num_samples=16),
        checkpoint=dict(every=1_000),
        evaluation=dict(metrics=("prompt_adherence",), num_samples=300, max_real=2_000),
    )
    config.data.options = ConfigDict(dict(size=256, max_objects=4, density="sentence", pictures=SHAPES))
    config.data.options.update(textured=False, num_examples=50_000)
    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=32, pooled=True, dropout=0.0))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=200))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=64, depth=2, num_heads=4))
    config.model.update(size_channels=32)
    config.optimizer.update(warmup_steps=500, decay="cosine")
    return _VARIANTS[argument](config)


def _latents(config: ConfigDict) -> ConfigDict:
    config.first_stage.update(path="runs/scenes_any_autoencoder", online=True)
    config.model.patch_size = 2
    config.process.prediction = ConfigDict(dict(name="velocity"))
    config.time_sampler.update(mean=0.0, std=1.0)
    config.objective = ConfigDict(dict(name="flow_matching"))
    return config


def _narrow(config: ConfigDict) -> ConfigDict:
    config.data.options.num_examples = 2_000
    config.model.update(hidden_size=64, depth=2, num_heads=1)
    config.conditioning.text.encoder.update(width=16, depth=1, num_heads=1)
    config.train.update(steps=100, batch_size=8)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=10)
    config.log.update(every=20, validate_every=0, sample_every=0)
    config.checkpoint.every = 100
    config.sampling.update(sampler=dict(name="flow_euler"), steps=8)
    config.evaluation.update(metrics=(), num_samples=4)
    return config


_VARIANTS = {"": lambda config: config, "latents": _latents, "narrow": _narrow}
