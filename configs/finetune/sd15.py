"""Stable Diffusion 1.5: its whole U-Net is trained further on pictures with captions.

The model of Rombach et al. 2022 (arXiv:2112.10752), read from a folder of the published pipeline. The U-Net's
859,520,964 parameters are trained. The text encoder and the first stage, which encodes in every step, stay frozen.
Recipe: AdamW 1e-5 after 500 steps of warm-up, batch 64, EMA 0.9999. The loss is on epsilon with the weights min(SNR, 5)
/ SNR of Min-SNR (Hang et al. 2023, arXiv:2303.09556). The caption is replaced by "" for a tenth of the examples, so
that guidance keeps working. The number of steps suits a set of some ten thousand pictures; no quality is claimed.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each. The pictures are cut
to squares of 512 pixels.

Slice: TPU v5e 4x4 (16 chips), batch 4 a chip, activations in bfloat16. Parameters, two moments and the average take
13.8 GB in float32, which 16 chips share; the frozen parts take 0.8 GB. The memory of activations was not measured.

    python -m experiments.train --config=configs/finetune/sd15.py --workdir=runs/sd15 \\
        --config.init.folder=models/sd15 --config.data.dataset=folder:data/pictures
    python -m experiments.generate --workdir=runs/sd15 --prompt="a red square"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.update(folder="models/sd15", published="sd15")
    config.update(
        data=dict(dataset="folder:data/pictures", image_size=512, crop="adm", num_workers=8),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="min_snr", gamma=5.0)),
        train=dict(steps=20_000, batch_size=64, dtype="bfloat16", conditioning_dropout=0.1),
        optimizer=dict(name="adamw", learning_rate=1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.9999,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=16),
        log=dict(every=50, sample_every=1_000, num_samples=16),
        checkpoint=dict(every=1_000),
    )
    config.optimizer.warmup_steps = 500
    config.parallel.fsdp = -1
    config.parallel.data = 1
    return config
