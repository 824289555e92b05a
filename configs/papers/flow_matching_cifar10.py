"""Flow matching on CIFAR-10, unconditional, with the recipe of the authors' library.

Lipman et al. 2022, "Flow Matching for Generative Modeling" (arXiv:2210.02747), in the form of `examples/image` of
github.com/facebookresearch/flow_matching (Lipman et al. 2024, arXiv:2412.06264): ADM's U-Net with one head and pooled
resampling (55,676,419 parameters), straight paths, times with ln sigma / alpha ~ N(-1.2, 1.2), AdamW 1e-4 (0.9, 0.95)
with weight decay 0.01, batch 512, dropout 0.3, EMA 0.999, 1800 epochs of 97 steps.

Published: FID 2.07 with Heun's method on EDM's 50 noise levels. Their sampler starts with pure noise at the first of
these levels and takes 100 evaluations. Ours takes a step from pure noise to the first level and ends with an Euler
step, 101 evaluations. Their average starts with a smaller decay, (1 + n) / (10 + n) at step n. Not run here.

Topology: TPU v5e 2x4 (8 chips); the train step needs 4.5 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/flow_matching_cifar10.py --workdir=runs/flow_matching
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

CLAIMS = {
    "paper": "Lipman et al. 2022, arXiv:2210.02747",
    "parameters": {"value": 55_676_419, "source": "counted on the authors' code"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 0.75,
            "value": 3.0,
            "source": "x_t = (1 - t) x0 + t noise",
            "tolerance": 1e-12,
        }
    ],
    "loss": [{"t": 0.5, "value": 4.0, "source": "velocity: (1 / t)^2"}],
    "sampler": {"nfe": 101, "source": "Heun over 50 levels and the step to the first; 100 in the authors' code"},
    "weights": "guided_diffusion_new_order",
    "results": [
        {
            "metric": "fid",
            "value": 2.07,
            "sampler": "flow_heun",
            "nfe": 101,
            "num_samples": 50_000,
            "reference": "CIFAR-10, training images",
            "source": "the authors' README",
            "differs": "100 evaluations there",
        }
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "head_channels": 8},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(
        dict(
            name="adm",
            base_channels=128,
            channel_multipliers=(2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            num_heads=1,
            head_channels=None,
            resampling="pool",
            dropout=0.3,
        )
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="t"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="logit_normal", mean=-1.2, std=1.2))
    config.objective = ConfigDict(dict(name="flow_matching"))

    config.train.steps = 1_800 * 97
    config.train.batch_size = 512
    config.optimizer.update(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01)
    config.ema.decays = (0.999,)

    config.sampling.sampler = ConfigDict(dict(name="flow_heun"))
    config.sampling.grid = ConfigDict(dict(name="karras", t_min=0.002 / 1.002, t_max=80.0 / 81.0))
    config.sampling.steps = 51
    return config
