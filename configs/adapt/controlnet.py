"""ControlNet: a picture of edges, masks or depth steers Stable Diffusion, or any text-conditioned U-Net.

Zhang, Rao & Agrawala 2023 (arXiv:2302.05543): a copy of the U-Net's encoder, initialised with the U-Net's weights, sees
the picture. Its outputs are added to those of the U-Net through convolutions that start at zero. AdamW has the constant
learning rate 1e-5. The caption is replaced by "" for half of the examples, so that the picture alone must suffice
(section 3.3 of the paper). For Stable Diffusion 1.5 this trains 361,279,120 parameters; the model itself stays bit for
bit as it was. The network begins to follow the picture suddenly, after some thousand steps (section 3.3); with few
steps and few examples it shows no effect.

Data: pictures with captions and control pictures. The data set "scenes" has exact control pictures;
data.options.control chooses "edges", "masks" or "depth". For your own pictures, give a folder whose metadata.jsonl has
{"file_name": ..., "text": ..., "control": ...} for each, where "control" names the file of the control picture.

    python -m experiments.train --config=configs/adapt/controlnet.py --workdir=runs/edges \\
        --config.init.folder=models/sd15
    python -m experiments.convert --source=runs/edges --target=models/edges
    python -m experiments.generate --model=models/sd15 --prompt="a red star" --control=models/edges:edges.png
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.init.folder = "models/sd15"
    config.update(
        data=dict(dataset="scenes"),
        adapter=dict(name="controlnet"),
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="min_snr", gamma=5.0)),
        train=dict(steps=20_000, batch_size=4, dtype="bfloat16", conditioning_dropout=0.5),
        optimizer=dict(name="adamw", learning_rate=1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.999,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=8),
        log=dict(every=20, sample_every=1_000, num_samples=8),
        checkpoint=dict(every=1_000),
    )
    config.data.options = ConfigDict(dict(control="edges", size=512))
    return config
