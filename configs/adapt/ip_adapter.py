"""IP-Adapter: a picture as a second prompt for Stable Diffusion, or for any text-conditioned U-Net.

Ye et al. 2023 (arXiv:2308.06721): a frozen CLIP image encoder reads a picture and gives 4 tokens ("base"), or 16 tokens
from its patches ("plus"). Every attention to the text gets its own key and value projections for these tokens. They are
trained together with the projection to tokens; with "base" and Stable Diffusion 1.5 that is 22 million parameters. Each
picture is its own reference. The picture, the text, or both are dropped with 5% each (section 4.1 of the paper). AdamW
1e-4, weight decay 0.01, batch 8 a chip.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each. A model that has
seen few pictures may copy a picture that is its own reference: train on many, and judge samples from held-out pictures.

    python -m experiments.train --config=configs/adapt/ip_adapter.py --workdir=runs/reference \\
        --config.init.folder=models/sd15 --config.adapter.image_encoder=models/image_encoder
    python -m experiments.convert --source=runs/reference --target=reference.safetensors
    python -m experiments.generate --model=models/sd15 --prompt="in the snow" --ip_adapter=reference.safetensors \\
        --image_encoder=models/image_encoder --reference=fox.png
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.folder = "models/sd15"
    config.update(
        data=dict(dataset="folder:data/pictures", image_size=512, crop="adm"),
        adapter=dict(name="ip_adapter", image_encoder="models/image_encoder", projection="base"),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising"),
        train=dict(steps=50_000, batch_size=8, dtype="bfloat16", conditioning_dropout=0.05),
        optimizer=dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.999,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=8),
        log=dict(every=20, sample_every=1_000, num_samples=8),
        checkpoint=dict(every=1_000),
    )
    return config
