"""Your own pictures: a folder of images with classes, with captions, or with neither.

    python -m experiments.train --config=configs/folder.py --data=my/pictures --resolution=64 --workdir=runs/mine

Sub-directories are the classes, or `metadata.jsonl` states them. A tenth of every class, chosen by file name, is held
out for the validation loss. If the folder has its own test split, say so:
`--config.data.options.held_out=0 --config.data.validation_split=test`.

The recipe is that of Karras et al. 2022 (arXiv:2206.00364), with a U-Net that suits the resolution: it halves the
picture while 8 pixels or more are left, and attends at 16 pixels and below. Expected: shapes and colours after some
thousand steps; 20,000 steps of 32 pictures take an hour at 32 pixels on one accelerator, and a day on two CPU cores.
Above 128 pixels, latents are far cheaper (docs/usage.md, "Latents").
"""

from ml_collections import ConfigDict

from configs.base import runner

MULTIPLIERS = (1, 2, 2, 4, 4)


def get_config(resolution: str = "64") -> ConfigDict:
    """The config for pictures with this side in pixels, a multiple of 4 from 8 to 256."""
    size = int(resolution) if resolution.isdecimal() else 0
    if not (8 <= size <= 256 and size % 4 == 0):
        raise ValueError(f"the resolution must be a multiple of 4 from 8 to 256, it is {resolution}")
    sides = [size]
    while len(sides) < len(MULTIPLIERS) and sides[-1] % 2 == 0 and sides[-1] > 8:
        sides.append(sides[-1] // 2)
    config = runner()
    config.update(
        data=dict(dataset="folder", image_size=size, validation_split="held_out"),
        model=dict(name="unet", base_channels=32 if size <= 16 else 64, dropout=0.1, num_res_blocks=2),
        process=dict(name="gaussian", schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)),
        time_sampler=dict(name="log_normal", uniforms="low_discrepancy"),
        objective=dict(name="denoising", weighting="uniform"),
        train=dict(steps=20_000, batch_size=32, class_conditional=True, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=2e-4, clip_norm=1.0, warmup_steps=500),
        ema=dict(half_lives=(50_000,)),
        sampling=dict(sampler=dict(name="heun"), steps=18),
        log=dict(every=25, validate_every=500, sample_every=500, num_samples=36),
        checkpoint=dict(every=500, keep_best=1),
        evaluation=dict(metrics=("nearest_neighbours",), num_samples=100),
    )
    config.data.crop = "adm"
    config.data.options = ConfigDict(dict(held_out=0.1))
    config.model.channel_multipliers = MULTIPLIERS[: len(sides)]
    config.model.attention_resolutions = tuple(side for side in sides[1:] if side <= 16) or (sides[-1],)
    config.process.update(prediction=dict(name="edm", sigma_data=0.5), time_input=dict(name="quarter_log_sigma"))
    return config
