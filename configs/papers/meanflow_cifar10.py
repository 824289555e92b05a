"""MeanFlow on CIFAR-10, unconditional: one step.

Geng et al. 2025, "Mean Flows for One-step Generative Modeling" (arXiv:2505.13447), section 5, with the script of the
authors' PyTorch code (`cifar10_v0.sh`): EDM's DDPM++ with a second time (55,932,419 parameters), EDM's augmentation
without rotations and without vertical flips, logit-normal times (-2, 2), different for 75% of the batch, weight 1 /
(|.|^2 + 0.001)^0.75, Adam 6e-4 after a warm-up of 200 epochs, batch 1024, dropout 0.2, EMA 0.9999, 800k steps.

Published: FID 2.92 with one evaluation (from memory, not looked up again). Not run here.

Topology: TPU v5e 4x4 (16 chips); the train step needs 5.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/meanflow_cifar10.py --workdir=runs/meanflow_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

CLAIMS = {
    "paper": "Geng et al. 2025, arXiv:2505.13447",
    "parameters": {"value": 55_932_419, "source": "counted on the authors' PyTorch code"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 0.75,
            "value": 3.0,
            "source": "x_t = (1 - t) x0 + t noise",
            "tolerance": 1e-12,
        }
    ],
    "sampler": {"nfe": 1, "source": "one step"},
    "results": [
        {
            "metric": "fid",
            "value": 2.92,
            "sampler": "flow_map",
            "nfe": 1,
            "num_samples": 50_000,
            "reference": "CIFAR-10, training images",
            "source": "Table 3",
            "checked": False,
        }
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.data.flip = False
    config.data.augmentation = ConfigDict(dict(name="edm", probability=0.12, vertical_flip=False, rotation=False))
    config.data.num_workers = 16
    config.model = ConfigDict(dict(name="ddpmpp", num_times=2, noise_channel_multiplier=2, dropout=0.2))
    config.model.augment_channels = 6

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="t"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="logit_normal", mean=-2.0, std=2.0))
    config.objective = ConfigDict(dict(name="meanflow", instantaneous=0.25, p=0.75, c=1e-3))

    config.train.steps = 800_000
    config.train.batch_size = 1024
    config.optimizer.update(name="adam", learning_rate=6e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.optimizer.warmup_steps = 200 * 50_000 // 1024
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="flow_map"))
    config.sampling.steps = 1
    return config
