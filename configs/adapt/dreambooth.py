"""DreamBooth: one subject, learned from three to five pictures under a rare word.

Ruiz et al. 2022 (arXiv:2208.12242). The pictures of the subject share the caption "a photo of a sks object". Every
batch also holds as many pictures of its class, captioned "a photo of an object", so that the model does not forget the
class (prior preservation). Say what the subject is in both captions: "a photo of a sks dog", "a photo of a dog". The
model draws the 100 pictures of the class before training, into the workdir, unless you give a folder of your own.

The recipe is LoRA of rank 4 on the U-Net's attention, AdamW 1e-4 and 800 steps, each with 2 pictures of the subject and
2 of the class. `--config=configs/adapt/dreambooth.py:full` trains the U-Net itself at 5e-6, as the paper does.

    --config.train.text_encoder=True            train the text encoder too
    --config.objective.prior_loss_weight=0.5    weight of the class in the loss
    --config.data.num_class_images=0            no prior preservation
    --config.data.class_pictures=FOLDER         your own pictures of the class

Slice: one chip. The float32 parameters of Stable Diffusion 1.5 take 4.3 GB; training the whole U-Net adds 10.3 GB for
two moments and the average. The memory of activations was not measured.

    python -m experiments.train --config=configs/adapt/dreambooth.py --workdir=runs/dog \\
        --config.init.folder=models/sd15 --config.data.instance=data/my_dog \\
        --config.data.instance_prompt="a photo of a sks dog" --config.data.class_prompt="a photo of a dog"
    python -m experiments.generate --workdir=runs/dog --prompt="a sks dog on the beach"
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config(what: str = "lora") -> ConfigDict:
    """The config that trains `what`: "lora", or "full" for the U-Net itself."""
    if what not in ("lora", "full"):
        raise ValueError(f"dreambooth.py:{what} is not here: dreambooth.py:lora or dreambooth.py:full")
    config = runner()
    config.init.folder = "models/sd15"
    config.data.update(
        dataset="subject",
        crop="adm",
        instance_prompt="a photo of a sks object",
        class_prompt="a photo of an object",
        num_class_images=100,
    )
    config.update(
        time_sampler=dict(name="discrete_uniform", num_steps=1000),
        objective=dict(name="denoising", weighting=dict(name="uniform"), prior_loss_weight=1.0),
        train=dict(steps=800, batch_size=4, dtype="bfloat16"),
        optimizer=dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2, clip_norm=1.0),
        ema=dict(decays=(0.99,)),
        sampling=dict(sampler=dict(name="ddim"), steps=50, guidance=dict(scale=7.5), batch_size=8),
        log=dict(every=20, sample_every=200, num_samples=8),
        evaluation=dict(num_samples=8),
        checkpoint=dict(every=200),
    )
    if what == "full":
        config.optimizer.learning_rate = 5e-6
        return config
    config.adapter = dict(name="lora", rank=4, alpha=4.0, rank_stabilized=False, magnitude=False)
    config.adapter.targets = (r"network/.*/(self|cross)/(query|key|value|out)/kernel",)
    return config
