"""Class-conditional flow matching on Fashion-MNIST.

Rectified flow (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747) with the logit-normal times of
Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206). A small DDPM U-Net sees squares of 2x2 of the 28x28 pixels as
one. Samples take 32 steps of Euler's method.

Prepare the data once, from the idx files of Debian's package dataset-fashion-mnist or a directory of your own:

    python -m experiments.prepare_data --dataset=fashion_mnist [--idx_dir=...]

Expected: nothing published at this size. A classifier trained on the real images (86% on held-out ones) should
recognise the requested class in the samples at a similar rate. The recipe was not run to the end here; the report of a
run states what it measured.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.10 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/fashion_mnist_unet.py --workdir=runs/fashion
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.update(
        data=dict(dataset="fashion_mnist", image_size=28, validation_split="test", flip=True),
        model=dict(name="unet", patch_size=2, base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0, uniforms="low_discrepancy"),
        objective=dict(name="flow_matching"),
        train=dict(steps=10_000, batch_size=128, class_conditional=True, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(200_000,)),
        sampling=dict(sampler=dict(name="flow_euler"), steps=32, clip_x0=True),
        log=dict(every=50, validate_every=1_000, validation_examples=1_024, sample_every=1_000, num_samples=100),
        checkpoint=dict(every=1_000, keep_best=1),
        evaluation=dict(metrics=("class_accuracy", "nearest_neighbours"), num_samples=500, max_real=10_000),
    )
    config.model.attention_resolutions = ()
    config.optimizer.update(warmup_steps=500, decay="cosine")
    return config
