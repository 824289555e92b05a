"""FLUX.1 dev: its whole transformer is trained further on pictures with captions.

The model of Black Forest Labs 2024, read from a folder of the published pipeline. The transformer's 11,901,408,320
parameters are trained. The two text encoders and the first stage, which encodes in every step, stay frozen. Recipe:
AdamW 1e-5 after 500 steps of warm-up, batch 64, EMA 0.9999. The loss is on the velocity of the straight path with equal
weights, at times with logit(t) ~ N(0, 1) that are shifted towards noise by exp(1.15) = 3.16, as the published scheduler
does at 1024 x 1024 pixels (4,096 tokens). The model was distilled from guided predictions and takes their guidance
scale as an input. In training this input is `train.guidance_embedding`, 1, since data is unguided. A run's own samples
use the same value; a folder written from the run can draw with any. No caption is dropped, since sampling does not use
a null caption. The number of steps suits a set of some ten thousand pictures; no quality is claimed.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each. The pictures are cut
to squares of 1024 pixels; data.image_size sets another side. T5 reads 512 tokens of a caption, and CLIP reads 77.

Slice: TPU v5p 4x4x4 (64 chips), batch 1 a chip, activations in bfloat16, blocks recomputed in the backward pass.
Parameters, two moments and the average take 190.4 GB in float32. The frozen parts take 19.9 GB, of which T5 takes 19.0.
The chips share both; the memory of activations was not measured.

    python -m experiments.train --config=configs/finetune/flux.py --workdir=runs/flux \\
        --config.init.folder=models/flux --config.data.dataset=folder:data/pictures
    python -m experiments.generate --workdir=runs/flux --prompt="a red square"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.update(folder="models/flux", published="flux_dev", remat="full")
    config.update(
        data=dict(dataset="folder:data/pictures", image_size=1024, crop="adm", num_workers=8),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0, shift=3.16),
        objective=dict(name="denoising", weighting="uniform"),
        train=dict(steps=20_000, batch_size=64, dtype="bfloat16", guidance_embedding=1.0),
        optimizer=dict(name="adamw", learning_rate=1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.9999,)),
        sampling=dict(sampler=dict(name="flow_euler"), grid=dict(name="shift", shift=3.16), steps=28, batch_size=16),
        log=dict(every=50, sample_every=1_000, num_samples=16),
        checkpoint=dict(every=1_000),
    )
    config.optimizer.warmup_steps = 500
    config.parallel.fsdp = -1
    config.parallel.data = 1
    return config
