"""Compile the train step of a config for a TPU that is not there; prints one JSON object. Needs libtpu, no hardware.

    JAX_PLATFORMS=cpu python tests/parallel/compile_for_tpu.py configs/digits_unet.py v5e:2x2

Everything is as in `experiments.train`: the config's layout, state and step; only the data set is a mock.
"""

import contextlib
import json
import os
import runpy
import sys
import tempfile
import time

os.environ |= {  # the compiler alone is asked: no metadata server, no chips that only one process may have
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import tensorflow_datasets as tfds
from jax.experimental import topologies

from diffusion_jax.data import datasets
from experiments.wiring import Experiment


def main(config_file: str, topology: str) -> None:
    devices = tuple(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    config = runpy.run_path(config_file)["get_config"]()
    own = config.data.dataset in datasets  # such data is made on the spot
    with tempfile.TemporaryDirectory() as data_dir, contextlib.nullcontext() if own else tfds.testing.mock_data():
        config.data.data_dir = data_dir
        experiment = Experiment(config, devices=devices)
        _ = experiment.pipeline.info
    layout, train = experiment.layout, experiment.config.train
    layout.check_batch(train.batch_size, train.accumulation)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=layout.batch_sharding)
        for name, value in experiment.abstract_batch(train.batch_size).items()
    }
    state = experiment.abstract_state
    began = time.perf_counter()
    lowered = layout.compile(experiment.train_step(), state).lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - traced
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Temporaries are sometimes not reported, the peak of what lives at once sometimes leaves out gaps between them.
    needed = max(held + memory.temp_size_in_bytes, memory.peak_memory_in_bytes) + memory.generated_code_size_in_bytes
    found = {
        "topology": topology,
        "devices": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "host_count": layout.host_count,
        "trace_seconds": round(traced - began, 1),
        "compile_seconds": round(compile_seconds, 1),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "bytes_per_chip": needed,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
