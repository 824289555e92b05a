"""Stable Diffusion 3 medium: its whole transformer is trained further on pictures with captions.

The model of Esser et al. 2024 (arXiv:2403.03206), read from a folder of the published pipeline. The transformer's
2,028,328,000 parameters are trained. The three text encoders, the table of positions and the first stage, which encodes
in every step, stay frozen. Recipe: AdamW 1e-5 after 500 steps of warm-up, batch 64, EMA 0.9999. The loss is on the
velocity of the straight path with equal weights, at times with logit(t) ~ N(0, 1) that are shifted by 3 towards noise
(sec. 3.1 and eq. 23; the published scheduler samples with the same 3). The caption is replaced by "" for a tenth of the
examples. The number of steps suits a set of some ten thousand pictures; no quality is claimed.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each. The pictures are cut
to squares of 1024 pixels. T5 reads 256 tokens of a caption, and CLIP reads 77.

Slice: TPU v5p 2x2x4 (16 chips), batch 4 a chip, activations in bfloat16, blocks recomputed in the backward pass.
Parameters, two moments and the average take 32.5 GB in float32. The frozen parts take 22.7 GB, of which T5 takes 19.0.
The chips share both; the memory of activations was not measured.

    python -m experiments.train --config=configs/finetune/sd3.py --workdir=runs/sd3 \\
        --config.init.folder=models/sd3 --config.data.dataset=folder:data/pictures
    python -m experiments.generate --workdir=runs/sd3 --prompt="a red square"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.update(folder="models/sd3", published="sd3_medium", remat="full")
    config.update(
        data=dict(dataset="folder:data/pictures", image_size=1024, crop="adm", num_workers=8),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0, shift=3.0),
        objective=dict(name="denoising", weighting="uniform"),
        train=dict(steps=20_000, batch_size=64, dtype="bfloat16", conditioning_dropout=0.1),
        optimizer=dict(name="adamw", learning_rate=1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.9999,)),
        sampling=dict(
            sampler=dict(name="flow_euler"),
            grid=dict(name="shift", shift=3.0),
            steps=28,
            guidance=dict(scale=7.0),
            batch_size=16,
        ),
        log=dict(every=50, sample_every=1_000, num_samples=16),
        checkpoint=dict(every=1_000),
    )
    config.optimizer.warmup_steps = 500
    config.parallel.fsdp = -1
    config.parallel.data = 1
    return config
