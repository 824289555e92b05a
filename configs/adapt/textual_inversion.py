"""Textual inversion: a new meaning for one word of the text encoder, from a few pictures; nothing else changes.

Gal et al. 2022 (arXiv:2208.01618): one vector of the embedding table is trained for 3,000 steps with AdamW at the
constant learning rate 5e-3, batch 4. Every picture has the caption "a photo of a WORD". For Stable Diffusion 1.5 that
is 768 parameters.

The word is `data.trigger`. The tokenizer must read it as one token, and prompts should not need it otherwise. Its
vector starts from the meaning that it has already, so take a word with a similar meaning, or a rare one. To train the
vectors of several consecutive tokens, set their number, `adapter.rows`, and the number of the first token,
`adapter.first`.

Slice: one chip. The parameters of Stable Diffusion 1.5 take 4.3 GB in float32. The memory of activations was not
measured.

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
