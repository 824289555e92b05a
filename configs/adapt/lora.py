"""LoRA for Stable Diffusion, or for any model with captions: a style or a subject from a few dozen pictures.

The method of Hu et al. 2021 (arXiv:2106.09685) on the U-Net's attention: rank 4 with alpha 4, AdamW with the constant
learning rate 1e-4, batch 4. The caption is replaced by "" for a tenth of the examples. For Stable Diffusion 1.5 this
trains 797,184 parameters. The model is frozen and stays bit for bit as it was; optimizer, average and checkpoints hold
only the adapter.

Data: a folder of pictures, and in it metadata.jsonl with {"file_name": ..., "text": ...} for each; a word that all
captions share and that has no other meaning becomes the trigger. `data.trigger` puts this word before captions that
lack it; a picture without a caption gets the trigger alone. DoRA: --config.adapter.magnitude=True.

`lora.py:style` is the default. `lora.py:object` has 1,000 steps and drops one caption in 20. `lora.py:character` has
rank 16, adapts the text encoder's attention too, and has dropout 0.1 on the adapter and 1,500 steps at 5e-5. These are
usual choices that were not measured here.

Slice: one chip. The float32 parameters of Stable Diffusion 1.5 take 4.3 GB. Activations in bfloat16 come on top and
were not measured.

    python -m experiments.train --config=configs/adapt/lora.py --workdir=runs/style \\
        --config.init.folder=models/sd15 --config.data.dataset=folder:data/style
    python -m experiments.generate --workdir=runs/style --prompt="a fox in the style of xyz"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config(what: str = "style") -> ConfigDict:
    """The config that learns `what`: "style", "object" or "character"."""
    if what not in ("style", "object", "character"):
        raise ValueError(f"lora.py:{what} is not here: lora.py:style, lora.py:object or lora.py:character")
    config = runner()
    config.init.folder = "models/sd15"
    config.update(
        data=dict(dataset="folder:data/style", image_size=512, crop="adm"),
        adapter=dict(name="lora", rank=4, alpha=4.0, rank_stabilized=False, magnitude=False),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="min_snr", gamma=5.0)),
        train=dict(steps=2_000, batch_size=4, dtype="bfloat16", conditioning_dropout=0.1),
        optimizer=dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.99,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=8),
        log=dict(every=20, sample_every=500, num_samples=8),
        checkpoint=dict(every=500),
    )
    if what == "object":
        config.train.update(steps=1_000, conditioning_dropout=0.05)
    if what == "character":
        config.train.update(steps=1_500, conditioning_dropout=0.05, text_encoder=True)
        config.adapter.update(rank=16, alpha=16.0)
        config.adapter.dropout = 0.1
        config.optimizer.learning_rate = 5e-5
    config.adapter.targets = (r"network/.*/(self|cross)/(query|key|value|out)/kernel",)
    return config
