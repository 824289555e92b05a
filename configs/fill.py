"""Inpainting with a prompt: a text-to-image network with extra channels for a mask and for the picture around the hole.

The inpainting network of latent diffusion (Rombach et al. 2022, arXiv:2112.10752) in pixels and at a small scale. The
mask and the picture without the hole enter as extra input channels in every step and are never dropped. The prompt is
dropped for a tenth of the examples, so that samples can be guided by it. Holes are boxes. A quarter of the examples
keep only a strip of the picture, as when a canvas grows; 15% keep nothing, so that the network also learns to draw
whole pictures. The scenes of 24x24 pixels are those of `configs/scenes_text_to_image.py`, and the objective is flow
matching (Lipman et al. 2022, arXiv:2210.02747). No download.

A run without such channels can fill holes too, by a projection (`sampling.projection`): replacement or repaint.
Expected: not measured yet for the whole recipe of 12,000 steps with 64 examples each.

    python -m experiments.train --config=configs/fill.py --workdir=runs/fill
    python -m experiments.generate --workdir=runs/fill --image=a.png --mask=m.png --prompt="a blue ring" --out=b.png
    python -m experiments.generate --workdir=runs/fill --image=a.png --expand=0,0,12,0 --prompt="a star" --out=b.png
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.update(
        data=dict(dataset="scenes", image_size=24, validation_split="validation"),
        model=dict(name="unet", base_channels=48, channel_multipliers=(1, 2), attention_resolutions=(6,)),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0),
        objective=dict(name="flow_matching"),
        train=dict(steps=12_000, batch_size=64, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(20_000,)),
        sampling=dict(sampler=dict(name="flow_heun"), steps=12, guidance=dict(scale=3.0), batch_size=100),
        log=dict(validate_every=1_000, validation_examples=512, sample_every=1_000, num_samples=32),
        checkpoint=dict(every=1_000),
        evaluation=dict(metrics=("prompt_adherence",), num_samples=300, max_real=2_000),
    )
    config.data.options = ConfigDict(dict(size=24, max_objects=2, density="mixed", textured=False, num_examples=50_000))
    config.data.holes = ConfigDict(dict(name="boxes", most=2, smallest=0.2, largest=0.75, whole=0.15, beyond=0.25))
    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=48, pooled=True, dropout=0.0))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=200))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=64, depth=2, num_heads=4))
    config.conditioning.picture = ConfigDict(dict(name="hole"))
    config.model.update(num_res_blocks=1, num_heads=4, patch_size=2)
    config.optimizer.update(warmup_steps=200, decay="cosine")
    return config
