"""Class-conditional EDM on scikit-learn's handwritten digits: the quickstart. No download.

The recipe of Karras et al. 2022 (arXiv:2206.00364) trains a small U-Net on 1,437 real 8x8 images. Expected, after 3
minutes on two CPU cores: a classifier of real digits recognises the requested class in over 95% of 500 samples.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.07 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits

`:objective=NAME` after the file name trains the same network on the same data and budget with another objective
(configs/objectives.py).
"""

from ml_collections import ConfigDict

from configs.base import runner
from configs.objectives import with_objective


def get_config(argument: str = "") -> ConfigDict:
    config = runner()
    config.update(
        data=dict(dataset="digits", image_size=8, validation_split="test"),
        model=dict(name="unet", base_channels=32, channel_multipliers=(1, 2), attention_resolutions=(4,), dropout=0.1),
        process=dict(name="gaussian", schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0)),
        time_sampler=dict(name="log_normal", uniforms="low_discrepancy"),
        objective=dict(name="denoising", weighting="uniform"),
        train=dict(steps=900, batch_size=128, class_conditional=True, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(10_000,)),
        sampling=dict(sampler=dict(name="heun"), steps=18),
        log=dict(every=25, validate_every=150, sample_every=150, num_samples=100),
        checkpoint=dict(every=150, keep_best=1),
        evaluation=dict(metrics=("class_accuracy", "nearest_neighbours"), num_samples=500, likelihood_images=360),
    )
    config.model.num_res_blocks = 1
    config.process.update(prediction=dict(name="edm", sigma_data=0.5), time_input=dict(name="quarter_log_sigma"))
    config.optimizer.update(warmup_steps=100, decay="cosine")
    config.evaluation.bins = 17  # the digits have 17 levels, from 0 to 16
    return with_objective(config, argument)
