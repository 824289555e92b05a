"""Class-conditional DiT on scikit-learn's handwritten digits: v-prediction, Min-SNR weighting, guidance.

A Diffusion Transformer (Peebles & Xie 2023, arXiv:2212.09748) with four blocks on 2x2 patches is trained with
v-prediction (Salimans & Ho 2022, arXiv:2202.00512) on the cosine schedule with Min-SNR-5 weights (Hang et al. 2023,
arXiv:2303.09556). Samples take 20 steps of DPM-Solver++(2M) with classifier-free guidance 1.5.

Expected: a classifier trained on the real digits recognises the requested class in over 95% of 500 samples (20 network
evaluations, which guidance doubles); 99.6% was measured, after 7 minutes on two busy CPU cores.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.11 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/digits_dit.py --workdir=runs/digits_dit
"""

from ml_collections import ConfigDict

from configs.base import runner


def get_config() -> ConfigDict:
    config = runner()
    config.update(
        data=dict(dataset="digits", image_size=8, validation_split="test"),
        model=dict(name="dit", patch_size=2, hidden_size=128, depth=4, num_heads=4),
        process=dict(
            name="gaussian",
            schedule=dict(name="cosine", num_steps=1000),
            prediction=dict(name="v"),
            time_input=dict(name="discrete_index", num_steps=1000),
        ),
        time_sampler=dict(name="discrete_uniform", num_steps=1000, uniforms="low_discrepancy"),
        objective=dict(name="denoising", weighting=dict(name="min_snr", gamma=5.0)),
        train=dict(steps=1_500, batch_size=128, class_conditional=True, conditioning_dropout=0.1),
        optimizer=dict(name="adamw", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=1.0),
        ema=dict(half_lives=(20_000,)),
        sampling=dict(sampler=dict(name="dpmpp_2m"), steps=20, guidance=dict(scale=1.5), clip_x0=True),
        log=dict(every=50, validate_every=500, sample_every=500, num_samples=100),
        checkpoint=dict(every=500, keep_best=1),
        evaluation=dict(metrics=("class_accuracy", "nearest_neighbours"), num_samples=500, bins=17),
    )
    config.optimizer.update(warmup_steps=100, decay="cosine")
    config.evaluation.likelihood_images = 360
    return config
