"""Textual inversion: a new meaning for one word of the text encoder, from a few pictures; nothing else changes.

Gal et al. 2022 (arXiv:2208.01618): one vector of the table of embeddings is trained, AdamW 5e-3, constant, batch 4,
3,000 steps; every picture has the caption "a photo of a WORD". Of Stable Diffusion 1.5 that are 768 parameters.

The word is `data.trigger`: one that the tokenizer reads as one token, and that prompts do not need otherwise. It begins
as what it means already, so take one that means something near, or a rare one. Vectors of several tokens that follow
each other, `adapter.rows`, are named by the first one's number, `adapter.first`.

Slice: one chip; parameters of Stable Diffusion 1.5 are 4.3 GB in float32. What activations take was not measured.

    python -m experiments.train --config=configs/adapt/textual_inversion.py --workdir=runs/toy \\
        --config.init.folder=models/sd15 --config.data.instance=data/toy --config.data.trigger=zebrawood \\
        --config.data.instance_prompt="a photo of a zebrawood"
    python -m experiments.convert --source=runs/toy --target=toy.safetensors
    python -m experiments.generate --model=models/sd15 --textual_inversion=toy.safetensors --prompt="a <zebrawood>"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.folder = "models/sd15"
    config.data.update(dataset="subject", crop="adm", instance_prompt="a photo of a toy", trigger="toy")
    config.update(
        adapter=dict(name="textual_inversion", rows=1, first=-1),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="uniform")),
        train=dict(steps=3_000, batch_size=4, dtype="bfloat16"),
        optimizer=dict(name="adamw", learning_rate=5e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0),
        ema=dict(decays=(0.99,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=8),
        log=dict(every=20, sample_every=500, num_samples=8),
        evaluation=dict(num_samples=8),
        checkpoint=dict(every=500),
    )
    return config
