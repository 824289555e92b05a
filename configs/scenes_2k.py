"""Text to image at 2048 x 2048 pixels for a TPU slice: a DiT-L on patches of 16 x 16 pixels, 16,384 tokens a picture.

The network has 561,851,136 parameters. It starts from random weights; `teacher.workdir` may name a run of
`configs/scenes_any.py` with the same network, at 256 x 256, whose positions are then spread over the larger picture.
Times are shifted for the size, logit(t) ~ N(0.8 + log 8, 0.8): with 64 times the pixels of 256 x 256, it takes 8 times
the noise to hide as much (Esser et al. 2024, arXiv:2403.03206, eq. 23). The backward pass recomputes every block.
Attention is computed in chunks or by the TPU's kernel, so that the whole matrix of logits never exists.

This config was not compiled for a TPU and not trained yet. Its plan is made by

    python -m experiments.plan --config=configs/scenes_2k.py --topology=v5p:4x4x4
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    """The recipe."""
    config = runner()
    config.update(
        data=dict(dataset="scenes", image_size=2048, validation_split="validation"),
        model=dict(name="dit", size="L/16", positions="rotary", remat="full"),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="x0"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=2.879, std=0.8),
        objective=dict(name="jit", least=0.05),
        train=dict(steps=100_000, batch_size=64, conditioning_dropout=0.1, dtype="bfloat16"),
        optimizer=dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0),
        ema=dict(half_lives=(500_000,)),
        parallel=dict(data=1, fsdp=-1),
        sampling=dict(sampler=dict(name="flow_heun"), steps=25, guidance=dict(scale=3.0), batch_size=64),
        log=dict(validate_every=5_000, validation_examples=256, sample_every=5_000, num_samples=64),
        checkpoint=dict(every=1_000),
        evaluation=dict(num_samples=64, max_real=256),
    )
    config.data.options = ConfigDict(dict(size=2048, max_objects=4, density="description", num_examples=1_000_000))
    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=64, pooled=True, dropout=0.0))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=400))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=256, depth=4, num_heads=4))
    config.model.update(size_channels=32)
    config.sampling.grid = ConfigDict(dict(name="shift", shift=8.0))
    config.optimizer.update(warmup_steps=2_000)
    return config
