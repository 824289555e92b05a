"""Text to image, in pixels or in latents: coloured shapes on grey grounds, drawn as a caption says.

A small DDPM U-Net (Ho et al. 2020, arXiv:2006.11239) attends to the words of a caption in its lower levels, as in
latent diffusion (Rombach et al. 2022, arXiv:2112.10752), and is trained together with a transformer that reads the
words. The objective is flow matching (Lipman et al. 2022, arXiv:2210.02747) with the times of SD3 (Esser et al. 2024,
arXiv:2403.03206). Samples use classifier-free guidance. The scenes of 24x24 pixels are generated while they are read.
No download.

`:latents` after the file name is the last step of `make text-to-image`: one or two objects that a sentence describes,
in the latents of `configs/scenes_autoencoder.py:small`, 6x6 with 16 channels. Its network is a DiT (Peebles & Xie 2022,
arXiv:2212.09748) with cross-attention, trained with Muon, and guidance is limited to noise levels up to 3. It takes
7,500 steps with 32 examples each, 26 minutes on two cores. `:small` is a first trial in pixels, with one object and
patches of 3x3.

The judge, `prompt_adherence`, reads samples drawn for the data's own prompts by rules. Expected, from one seed:
`:latents` draws 22% of 300 prompts right (64% of single objects with their colours), where chance is 0.8%; `:small`
after 1,800 steps draws 14% of 240 right, where chance is 3%. The whole recipe was not measured; docs/scenes.md has the
tables.

    make text-to-image
    python -m experiments.train --config=configs/scenes_text_to_image.py --workdir=runs/scenes
    python -m experiments.train --config=configs/scenes_text_to_image.py:small --workdir=runs/small_scenes
    python -m experiments.sample --workdir=runs/scenes --prompt="a red star left of a blue ring" --num_samples=16
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config(argument: str = "") -> ConfigDict:
    """The whole recipe; with "latents" the demo; with "small" the first trial."""
    if argument not in _VARIANTS:
        raise ValueError(f"{argument!r} is none of {', '.join(filter(None, _VARIANTS))}")
    config = runner()
    config.update(
        data=dict(dataset="scenes", image_size=24, validation_split="validation"),
        model=dict(name="unet", base_channels=48, channel_multipliers=(1, 2, 2), attention_resolutions=(12, 6)),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0),
        objective=dict(name="flow_matching"),
        train=dict(steps=20_000, batch_size=64, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(50_000,)),
        sampling=dict(sampler=dict(name="flow_heun"), steps=16, guidance=dict(scale=3.0), batch_size=100),
        log=dict(validate_every=1_000, validation_examples=512, sample_every=1_000, num_samples=32),
        checkpoint=dict(every=1_000),
        evaluation=dict(metrics=("prompt_adherence",), num_samples=300, max_real=2_000),
    )
    config.data.options = ConfigDict(dict(size=24, max_objects=2, density="mixed"))
    config.data.options.update(textured=False, num_examples=50_000)
    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=48, pooled=True, dropout=0.0))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=200))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=64, depth=2, num_heads=4))
    config.model.update(num_res_blocks=1, num_heads=4)
    config.optimizer.update(warmup_steps=200, decay="cosine")
    return _VARIANTS[argument](config)


def _latents(config: ConfigDict) -> ConfigDict:
    config.data.update(dataset="latents:data/scenes_latents", image_size=6)
    config.data.options = ConfigDict()
    config.first_stage.path = "runs/scenes_autoencoder"
    config.model = ConfigDict(dict(name="dit", patch_size=1, hidden_size=128, depth=6, num_heads=4, scan_unroll=6))
    config.conditioning.text.length = 20
    config.train.update(steps=7_500, batch_size=32)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=100, decay="linear")
    with config.unlocked():
        config.optimizer.momentum = 0.9
    config.ema.half_lives = (4_000,)
    config.sampling.update(steps=12, batch_size=60)
    config.sampling.guidance.interval = (0.0, 3.0)
    config.log.update(every=100, validate_every=1_000, sample_every=2_500)
    config.checkpoint.every = 500
    return config


def _small(config: ConfigDict) -> ConfigDict:
    config.data.options.update(num_examples=30_000, max_objects=1)
    config.model.update(channel_multipliers=(1, 2), attention_resolutions=(4,))
    with config.unlocked():
        config.model.patch_size = 3
    config.train.steps = 1_800
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    config.ema.half_lives = (4_000,)
    config.sampling.update(steps=12, batch_size=60)
    config.log.update(every=50, validate_every=600, sample_every=600)
    config.checkpoint.every = 600
    config.evaluation.num_samples = 240
    return config


_VARIANTS = {"": lambda config: config, "latents": _latents, "small": _small}
