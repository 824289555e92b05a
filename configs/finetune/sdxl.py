"""Stable Diffusion XL: its whole U-Net is trained further on pictures with captions.

The model of Podell et al. 2023 (arXiv:2307.01952), read from a folder of the published base pipeline. The U-Net's
2,567,463,684 parameters are trained. The two text encoders and the first stage, which encodes in every step, stay
frozen. Recipe: AdamW 1e-5 after 500 steps of warm-up, batch 64, EMA 0.9999. The loss is on epsilon with the weights
min(SNR, 5) / SNR of Min-SNR (Hang et al. 2023, arXiv:2303.09556). For a tenth of the examples zeros replace the
caption, as in the pipeline's own null condition. For each picture the network is told the original size, the crop, and
the size 1024 x 1024 (sec. 2.2). The number of steps suits a set of some ten thousand pictures; no quality is claimed.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each. The pictures are
resized to 1024 pixels along the shorter side, and their middle is cut out.

Slice: TPU v5p 2x2x4 (16 chips), batch 4 a chip, activations in bfloat16, blocks recomputed in the backward pass.
Parameters, two moments and the average take 41.1 GB in float32, and the frozen parts take 3.6 GB. The chips share both;
the memory of activations was not measured.

    python -m experiments.train --config=configs/finetune/sdxl.py --workdir=runs/sdxl \\
        --config.init.folder=models/sdxl --config.data.dataset=folder:data/pictures
    python -m experiments.generate --workdir=runs/sdxl --prompt="a red square"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.update(folder="models/sdxl", published="sdxl", remat="full")
    config.update(
        data=dict(dataset="folder:data/pictures", image_size=1024, crop="adm", num_workers=8),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="min_snr", gamma=5.0)),
        train=dict(steps=20_000, batch_size=64, dtype="bfloat16", conditioning_dropout=0.1),
        optimizer=dict(name="adamw", learning_rate=1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.9999,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=5.0), batch_size=16),
        log=dict(every=50, sample_every=1_000, num_samples=16),
        checkpoint=dict(every=1_000),
    )
    config.optimizer.warmup_steps = 500
    config.parallel.fsdp = -1
    config.parallel.data = 1
    return config
