"""Write untrained runs on scenes within seconds: a workdir with a config, a word list and random parameters."""

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.rng import stream_key
from experiments.building import conditions
from experiments.building.kinds import open_experiment
from experiments.building.restoring import describe_run, open_checkpoints
from experiments.ground import workdir
from experiments.ground.config_files import load_config


def scenes_config(argument="", config="configs/scenes_text_to_image.py", **fields):
    """The config of a scenes recipe with a small network and few examples."""
    made = load_config(f"{config}:{argument}" if argument else config)
    small = {
        "unet": dict(base_channels=8, channel_multipliers=(1,), attention_resolutions=(), num_res_blocks=1),
        "dit": dict(hidden_size=8, depth=1, num_heads=2),
    }
    made.model.update(small[made.model.name])
    made.conditioning.text.update(length=20, encoder=ConfigDict(dict(name="transformer", width=8, depth=1)))
    made.conditioning.text.encoder.num_heads = 2
    if made.data.dataset == "scenes":
        made.data.options.update(num_examples=48, num_test=16)
    made.train.batch_size = 16
    made.sampling.update(steps=3, sampler=ConfigDict(dict(name="flow_euler")), guidance=ConfigDict(dict(scale=2.0)))
    with made.unlocked():
        made.update_from_flattened_dict(fields)
    return made


def called(module, *flags):
    """Run a command in this process; other tests cover how a command's process ends."""
    module.FLAGS.read([module.__name__, *map(str, flags)])
    try:
        module.main([])
    finally:
        module.FLAGS.assume_defaults()


def random_params(experiment, scale=0.3):
    """The parameters of a run: random values for the trained groups, the stored values for the frozen ones."""
    rng = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda leaf: np.float32(scale * rng.standard_normal(leaf.shape)), experiment.abstract_state.params
    )
    frozen, _ = experiment.read_frozen()
    return {**trained, **(frozen or {})}


def fresh_run(directory, config, scale=0.3):
    """Write a run whose network has random weights; returns its workdir."""
    experiment = open_experiment(config)
    kept = conditions.kept(experiment.text)
    workdir.claim(directory, experiment.config, experiment.info, kept=kept)
    describe_run(experiment, directory)
    params = {name: random_params(experiment, scale)[name] for name in experiment.abstract_state.params}
    empty = experiment.abstract_state.replace(frozen=None)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), empty)
    state = state.replace(params=params, ema=dict.fromkeys(state.ema, params))
    _, known = experiment.read_frozen()
    checkpoints = open_checkpoints(experiment, directory)
    checkpoints.save(0, state.saved, {"frozen": known}, {})
    checkpoints.close()
    return directory


def fresh_first_stage(directory):
    """Write a first stage with random weights that maps scenes of 24x24 to latents of 6x6."""
    config = load_config("configs/scenes_autoencoder.py:small")
    config.data.options.update(num_examples=48, num_test=16)
    config.codec.channels = (8,)
    experiment = open_experiment(config)
    workdir.claim(directory, experiment.config, experiment.info)
    codec = experiment.codec
    params = codec.init_params(stream_key(0, "init"))
    systems.save_first_stage(directory, codec, config.codec.to_dict(), params, experiment.info)
    return directory
